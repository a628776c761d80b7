//! Tokens of MCIAS are renewed in passing, when half of their life is over.
//!
//! MCIAS takes the old token back when it gives a new one, so one process renews at a time (a lock beside the token),
//! and whoever waited takes what it finds. A renewal that fails is told, and tried again after [`TRY_AGAIN`]: the
//! command goes on with the token that it has.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use super::mcias;
use super::token::{self, Claims, Token};
use crate::context::Context;
use crate::error::Failure;

/// The age at which agents take no token any more, unless their owner says otherwise (`[auth] max_age`).
const MAX_AGE_SECONDS: i64 = 12 * 3600;
/// Time until the next try after one that failed.
const TRY_AGAIN: Duration = Duration::from_secs(60);
/// Longest wait for another process that renews: as long as its call may take.
const WAIT: Duration = mcias::ASIDE_TIME;
/// Time between two looks at the lock.
const LOOK: Duration = Duration::from_millis(50);

/// Whether half of a token's life is over at `now`: its own, or the one that agents grant it.
fn is_due(claims: &Claims, now: i64) -> bool {
    let (Some(issued), Some(expires)) = (claims.iat, claims.exp) else {
        return false;
    };
    let life = expires.saturating_sub(issued).min(MAX_AGE_SECONDS);
    now.saturating_sub(issued) >= life / 2
}

/// Whether MCIAS made it: what an agent made, no server renews.
pub(crate) fn is_of_mcias(claims: &Claims) -> bool {
    claims
        .iss
        .as_deref()
        .is_some_and(|issuer| !issuer.starts_with("mcp-agent:"))
}

fn wants_renewal(token: &Token) -> bool {
    let now = jiff::Timestamp::now().as_second();
    token
        .claims()
        .is_some_and(|claims| is_of_mcias(&claims) && is_due(&claims, now))
}

/// The token, or the one that it was renewed to in its file `path`.
pub(super) async fn renewed(context: &Context, path: &Path, held: Token) -> Token {
    if context.settings.issuer.is_none() || !wants_renewal(&held) {
        return held;
    }
    match try_renew(context, path, &held).await {
        Ok(Some(token)) => token,
        Ok(None) => held,
        Err(failure) => {
            context.out.warn(&format!(
                "the token was not renewed and is used as it is: {}{}",
                failure.message,
                failure
                    .causes
                    .first()
                    .map(|cause| format!(": {cause}"))
                    .unwrap_or_default()
            ));
            held
        }
    }
}

/// A newer token, or none where it is not the time to ask.
async fn try_renew(context: &Context, path: &Path, held: &Token) -> Result<Option<Token>, Failure> {
    let Some(server) = &context.settings.issuer else {
        return Ok(None);
    };
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".lock");
    let lock_path = path.with_file_name(name);
    let failed = |error: &std::io::Error| {
        Failure::failed(format!("{} cannot be locked", lock_path.display())).because(error)
    };
    let lock = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|error| failed(&error))?;
    let until = tokio::time::Instant::now() + WAIT;
    while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if tokio::time::Instant::now() >= until {
            return Ok(None);
        }
        tokio::time::sleep(LOOK).await;
    }
    // Another one may have renewed it meanwhile, or have tried in vain.
    if let Some(found) = token::read(path)?
        && found != *held
        && !wants_renewal(&found)
    {
        return Ok(Some(found));
    }
    let metadata = lock.metadata().map_err(|error| failed(&error))?;
    let tried = metadata.len() > 0
        && metadata
            .modified()
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok())
            .is_some_and(|age| age < TRY_AGAIN);
    if tried {
        return Ok(None);
    }
    match mcias::renew(server, held).await {
        Ok(token) => {
            token::write(path, &token)?;
            // What is left of a failure would only delay the next renewal.
            let _ = lock.set_len(0);
            Ok(Some(token))
        }
        Err(failure) => {
            // The mark is its length and its date; without it the next command tries again.
            let _ = lock.set_len(0);
            let _ = std::io::Write::write_all(&mut &lock, b"failed\n");
            Err(failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(iat: i64, exp: i64) -> Claims {
        serde_json::from_value(serde_json::json!({
            "iss": "https://mcias", "sub": "4711", "iat": iat, "exp": exp,
        }))
        .unwrap()
    }

    #[test]
    fn token_is_renewed_after_half_of_the_shorter_life() {
        let hour = 3600;
        let short = claims(0, 8 * hour);
        assert!(!is_due(&short, 4 * hour - 1));
        assert!(is_due(&short, 4 * hour));
        let month = claims(0, 30 * 24 * hour);
        assert!(!is_due(&month, 6 * hour - 1));
        assert!(is_due(&month, 6 * hour));
    }

    #[test]
    fn what_an_agent_made_is_not_renewed() {
        let mut claims = claims(0, 10);
        assert!(is_of_mcias(&claims));
        claims.iss = Some("mcp-agent:rift".to_owned());
        assert!(!is_of_mcias(&claims));
        claims.iss = None;
        assert!(!is_of_mcias(&claims));
    }
}
