//! The restart policy as the agent applies it: what follows from an end, and how long it waits.

use std::time::Duration;

use mcp_spec::component::Restart;

/// The first pause; doubled by each further attempt.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// The first pause after an end that was asked for (exit 0, or 128 + SIGTERM): an engine whose command
/// line stops a container cleans up afterwards, and podman's fails where it runs again by then.
pub(super) const ORDERLY_PAUSE: Duration = Duration::from_millis(300);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// A run of this length ends the series: the next end is a first one again.
pub(super) const CALM: Duration = Duration::from_secs(10 * 60);

/// What follows from an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: the policy takes this end for good.
    Finished,
    /// Nothing any more: so many starts in a row were all that the policy allows.
    Spent(u32),
    /// A start after this pause.
    Again(Duration),
}

/// What `restart` asks for after an end with `code` (`None` where the engine does not tell one) when
/// `attempts` starts in a row were spent. `jitter` lies between -1 and 1.
pub(super) fn next(restart: Restart, code: Option<i32>, attempts: u32, jitter: f64) -> Next {
    match restart {
        Restart::No => Next::Finished,
        Restart::OnFailure { .. } if code == Some(0) => Next::Finished,
        Restart::OnFailure { max: Some(max) } if attempts >= max => Next::Spent(max),
        Restart::OnFailure { .. } | Restart::Always | Restart::UnlessStopped => {
            let is_orderly = matches!(code, Some(0 | 143));
            Next::Again(match attempts {
                0 if is_orderly => ORDERLY_PAUSE,
                _ => pause(attempts, jitter),
            })
        }
    }
}

/// The longest pause that [`next`] can give after so many attempts.
pub(super) fn longest(attempts: u32) -> Duration {
    pause(attempts, 1.0).max(ORDERLY_PAUSE)
}

/// None at first, then 10 s doubling to 5 min, give or take a tenth.
fn pause(attempts: u32, jitter: f64) -> Duration {
    if attempts == 0 {
        return Duration::ZERO;
    }
    let doublings = (attempts - 1).min(16);
    let pause = (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE);
    pause.mul_f64(1.0 + 0.1 * jitter.clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_start_is_at_once_and_pauses_double_to_five_minutes() {
        let seconds: Vec<u64> = (0..8)
            .map(|attempts| pause(attempts, 0.0).as_secs())
            .collect();
        assert_eq!(seconds, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(pause(u32::MAX, 0.0), LONGEST_PAUSE);
        assert_eq!(pause(1, 1.0).as_secs(), 11);
        assert_eq!(pause(1, -1.0).as_secs(), 9);
        assert!(pause(9, 1.0) <= longest(9));
        assert_eq!(longest(1).as_secs(), 11);
    }

    #[test]
    fn a_policy_takes_the_ends_that_it_names_for_good() {
        let again = Next::Again(Duration::ZERO);
        let soon = Next::Again(ORDERLY_PAUSE);
        let on_failure = Restart::OnFailure { max: None };
        assert_eq!(next(Restart::No, Some(1), 0, 0.0), Next::Finished);
        assert_eq!(next(on_failure, Some(0), 0, 0.0), Next::Finished);
        assert_eq!(next(on_failure, Some(1), 0, 0.0), again);
        assert_eq!(next(on_failure, None, 0, 0.0), again);
        assert_eq!(next(Restart::Always, Some(137), 0, 0.0), again);
        assert_eq!(next(Restart::Always, Some(0), 0, 0.0), soon);
        assert_eq!(next(Restart::UnlessStopped, Some(143), 0, 0.0), soon);
    }

    #[test]
    fn on_failure_n_is_spent_after_n_starts_in_a_row() {
        let restart = Restart::OnFailure { max: Some(2) };
        assert!(matches!(next(restart, Some(1), 1, 0.0), Next::Again(_)));
        assert_eq!(next(restart, Some(1), 2, 0.0), Next::Spent(2));
        assert_eq!(next(restart, Some(0), 2, 0.0), Next::Finished);
    }
}
