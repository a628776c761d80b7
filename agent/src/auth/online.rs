//! Online validation: whether the issuer still stands by a token that it signed.
//!
//! An answer counts for [`FRESH`], by the token's SHA-256; the tokens themselves are not kept. Where the issuer
//! cannot be asked, a token that it took back before stays refused, and any other is of unknown standing: its
//! bearer may look, and change nothing. An issuer that is away is not asked again for [`AWAY`], so that nobody
//! waits for it call by call. Bounds: [`MAX_TOKENS`] are remembered, [`ASKED_AT_ONCE`] are asked about at a time.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::web::{self, HttpsUrl, WebError};
use crate::error_chain;

/// How long an answer counts.
pub const FRESH: Duration = Duration::from_secs(30);
/// How long an issuer that gave no answer is left alone.
const AWAY: Duration = Duration::from_secs(2);
/// Most tokens that are remembered, about 150 bytes each.
const MAX_TOKENS: usize = 4096;
/// Most questions at a time: each costs a handshake.
const ASKED_AT_ONCE: usize = 8;

/// Where an issuer is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validation {
    /// The address, MCIAS's `/v1/token/validate`.
    pub url: HttpsUrl,
    /// The CA that its certificate is checked against.
    pub ca_cert: PathBuf,
}

/// How a token stands with its issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It counts, with these roles where the issuer named some.
    Good(Option<Vec<String>>),
    /// It does not count any more.
    Revoked,
    /// The issuer could not be asked.
    Unknown,
}

#[derive(Debug, Clone)]
struct Answer {
    at: Instant,
    standing: Standing,
}

#[derive(Debug, Default)]
struct Memory {
    answers: HashMap<[u8; 32], Answer>,
    away_since: Option<Instant>,
}

/// One issuer's answers.
#[derive(Debug)]
pub struct Online {
    validation: Validation,
    memory: Mutex<Memory>,
    asking: Semaphore,
}

/// What MCIAS answers; more fields may come.
#[derive(Deserialize)]
struct Told {
    valid: bool,
    #[serde(default)]
    sub: Option<String>,
    #[serde(default)]
    roles: Option<Vec<String>>,
}

impl Online {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(validation: Validation) -> Self {
        Self {
            validation,
            memory: Mutex::default(),
            asking: Semaphore::new(ASKED_AT_ONCE),
        }
    }

    /// How `token` of `subject` stands now.
    pub async fn standing(&self, token: &str, subject: &str) -> Standing {
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(known) = self.known(&hash, Instant::now()) {
            return known;
        }
        let asked = async {
            let _turn = self.asking.acquire().await;
            // Whoever waited may find that another one asked.
            match self.known(&hash, Instant::now()) {
                Some(known) => known,
                None => self.ask(&hash, token, subject).await,
            }
        };
        // The wait for a turn is bounded too.
        match tokio::time::timeout(web::CALL_LIMIT, asked).await {
            Ok(standing) => standing,
            Err(_) => self.unreached(&hash, Instant::now()),
        }
    }

    fn known(&self, hash: &[u8; 32], now: Instant) -> Option<Standing> {
        let mut memory = self
            .memory
            .lock()
            .expect("nothing panics while it holds this lock");
        let answer = memory.answers.get(hash);
        if let Some(answer) = answer
            && now.duration_since(answer.at) < FRESH
        {
            return Some(answer.standing.clone());
        }
        let revoked = answer.is_some_and(|answer| answer.standing == Standing::Revoked);
        if let Some(since) = memory.away_since {
            if now.duration_since(since) < AWAY {
                return Some(if revoked {
                    Standing::Revoked
                } else {
                    Standing::Unknown
                });
            }
            memory.away_since = None;
        }
        None
    }

    async fn ask(&self, hash: &[u8; 32], token: &str, subject: &str) -> Standing {
        let Validation { url, ca_cert } = &self.validation;
        let body = serde_json::json!({ "token": token });
        let told = match web::post(url, ca_cert, token, &body).await {
            Ok(bytes) => serde_json::from_slice::<Told>(&bytes)
                .map_err(|_| WebError::Nonsense { url: url.clone() }),
            Err(error) => Err(error),
        };
        let standing = match told {
            Ok(told) if told.valid && told.sub.as_deref().is_none_or(|sub| sub == subject) => {
                Standing::Good(told.roles)
            }
            Ok(_) => Standing::Revoked,
            // It would not have the token itself as a credential any more.
            Err(WebError::Status { status, .. }) if status == hyper::StatusCode::UNAUTHORIZED => {
                Standing::Revoked
            }
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the issuer was not asked about a token");
                return self.unreached(hash, Instant::now());
            }
        };
        self.remember(*hash, standing.clone(), Instant::now());
        standing
    }

    fn unreached(&self, hash: &[u8; 32], now: Instant) -> Standing {
        let mut memory = self
            .memory
            .lock()
            .expect("nothing panics while it holds this lock");
        memory.away_since = Some(now);
        match memory.answers.get(hash) {
            Some(answer) if answer.standing == Standing::Revoked => Standing::Revoked,
            _ => Standing::Unknown,
        }
    }

    fn remember(&self, hash: [u8; 32], standing: Standing, now: Instant) {
        let mut memory = self
            .memory
            .lock()
            .expect("nothing panics while it holds this lock");
        memory.away_since = None;
        let answers = &mut memory.answers;
        if answers.len() >= MAX_TOKENS && !answers.contains_key(&hash) {
            answers.retain(|_, answer| {
                answer.standing == Standing::Revoked || now.duration_since(answer.at) < FRESH
            });
            if answers.len() >= MAX_TOKENS
                && let Some(oldest) = answers
                    .iter()
                    .min_by_key(|(_, answer)| answer.at)
                    .map(|(hash, _)| *hash)
            {
                answers.remove(&oldest);
            }
        }
        answers.insert(hash, Answer { at: now, standing });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn online() -> Online {
        Online::new(Validation {
            url: "https://localhost:1/v1/token/validate".parse().unwrap(),
            ca_cert: "/nowhere/ca.pem".into(),
        })
    }

    #[test]
    fn answer_counts_for_half_a_minute() {
        let online = online();
        let (hash, start) = ([1; 32], Instant::now());
        assert_eq!(online.known(&hash, start), None);
        online.remember(hash, Standing::Good(None), start);
        let late = start + FRESH - Duration::from_millis(1);
        assert_eq!(online.known(&hash, late), Some(Standing::Good(None)));
        assert_eq!(online.known(&hash, start + FRESH), None);
    }

    #[test]
    fn token_that_was_taken_back_stays_so_while_the_issuer_is_away() {
        let online = online();
        let (bad, good, start) = ([1; 32], [2; 32], Instant::now());
        online.remember(bad, Standing::Revoked, start);
        online.remember(good, Standing::Good(None), start);
        let later = start + FRESH;
        assert_eq!(online.unreached(&bad, later), Standing::Revoked);
        assert_eq!(online.unreached(&good, later), Standing::Unknown);
        // Nobody asks for a moment, and then somebody does.
        assert_eq!(online.known(&good, later), Some(Standing::Unknown));
        assert_eq!(online.known(&bad, later), Some(Standing::Revoked));
        assert_eq!(online.known(&good, later + AWAY), None);
    }

    #[test]
    fn memory_is_bounded() {
        let online = online();
        let now = Instant::now();
        for n in 0..2 * MAX_TOKENS {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&n.to_le_bytes());
            online.remember(hash, Standing::Revoked, now);
        }
        assert!(online.memory.lock().unwrap().answers.len() <= MAX_TOKENS);
    }

    #[tokio::test]
    async fn issuer_that_cannot_be_asked_leaves_the_standing_unknown() {
        assert_eq!(online().standing("a.b.c", "alice").await, Standing::Unknown);
    }
}
