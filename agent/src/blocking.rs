//! Disk and hashing work, off the async threads.

/// Runs `work` on a thread that may block. A panic in it goes on in the caller.
pub async fn blocking<T, F>(work: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    #[cfg(any(test, feature = "testing"))]
    if let Some(pace) = crate::testing::pace() {
        let name = crate::testing::Work::Disk(std::any::type_name::<F>());
        // Only the registry's answers can be errors here.
        drop(pace.before(name).await);
        let result = work();
        pace.after(name).await;
        return result;
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down: nobody waits for the answer any more.
            Err(_) => std::future::pending().await,
        },
    }
}
