//! From when and until when a certificate is valid: the two dates of RFC 5280, section 4.1.2.5.

use std::path::PathBuf;
use std::time::Duration;

use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Decode as _, FixedTag as _, Reader as _, Tagged as _};
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;

use super::{CertificateError, chain};
use crate::config::TlsConfig;

/// How long before its end a certificate is told to expire soon: time for whoever makes new ones.
pub const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

/// The dates of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub from: Timestamp,
    /// The last moment.
    pub until: Timestamp,
}

/// What is wrong with a certificate's dates.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DateError {
    /// It is not valid any more: clients refuse it.
    #[error("{} expired at {until}", file.display())]
    Expired {
        /// The file.
        file: PathBuf,
        /// Its end.
        until: Timestamp,
    },
    /// It is not valid yet: clients refuse it.
    #[error("{} is not valid before {from}, and this node's clock says {now}", file.display())]
    NotYet {
        /// The file.
        file: PathBuf,
        /// Its beginning.
        from: Timestamp,
        /// What the clock says, to the second.
        now: Timestamp,
    },
    /// It expires soon.
    #[error("{} expires at {until}", file.display())]
    Soon {
        /// The file.
        file: PathBuf,
        /// Its end.
        until: Timestamp,
    },
}

impl DateError {
    /// Whether it still works.
    #[must_use]
    pub const fn is_warning(&self) -> bool {
        matches!(self, Self::Soon { .. })
    }

    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Expired { file, .. } | Self::Soon { file, .. } => format!(
                "put a new one of the same CA into {}, with its key; it is taken up with the next connection",
                file.display()
            ),
            Self::NotYet { .. } => {
                "set this node's clock, or have the certificate made anew".to_owned()
            }
        }
    }
}

/// The dates of the certificates that are configured, the end first; `None` where one has dates that cannot
/// be read.
///
/// # Errors
///
/// [`CertificateError`] where they cannot be read at all.
pub fn configured(files: &TlsConfig) -> Result<Option<Validity>, CertificateError> {
    let dates: Option<Vec<Validity>> = chain(files)?
        .iter()
        .map(|certificate| validity(certificate))
        .collect();
    // A chain is valid where all of it is.
    Ok(dates.and_then(|dates| {
        Some(Validity {
            from: dates.iter().map(|dates| dates.from).max()?,
            until: dates.iter().map(|dates| dates.until).min()?,
        })
    }))
}

impl Validity {
    /// Whether certificates of these dates, in the configured file, are of use now and for a while.
    ///
    /// # Errors
    ///
    /// [`DateError`].
    pub fn look(self, files: &TlsConfig, now: Timestamp) -> Result<(), DateError> {
        let file = files.cert.clone();
        let Self { from, until } = self;
        if now > until {
            return Err(DateError::Expired { file, until });
        }
        if now < from {
            // To the second: it is for people.
            let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
            return Err(DateError::NotYet { file, from, now });
        }
        if until.duration_since(now) < SOON {
            return Err(DateError::Soon { file, until });
        }
        Ok(())
    }
}

/// The dates of one certificate in DER.
fn validity(certificate: &[u8]) -> Option<Validity> {
    let (from, until) = dates(certificate).ok()?;
    let at = |since_epoch: Duration| {
        Timestamp::from_second(i64::try_from(since_epoch.as_secs()).ok()?).ok()
    };
    Some(Validity {
        from: at(from)?,
        until: at(until)?,
    })
}

fn dates(certificate: &[u8]) -> der::Result<(Duration, Duration)> {
    AnyRef::from_der(certificate)?.sequence(|certificate| {
        let signed: AnyRef<'_> = certificate.decode()?;
        // The algorithm and the signature.
        let _: (AnyRef<'_>, AnyRef<'_>) = (certificate.decode()?, certificate.decode()?);
        signed.sequence(|signed| {
            let first: AnyRef<'_> = signed.decode()?;
            if first.tag().is_context_specific() {
                // It was the version: the serial number follows.
                let _: AnyRef<'_> = signed.decode()?;
            }
            // The algorithm and the issuer.
            let _: (AnyRef<'_>, AnyRef<'_>) = (signed.decode()?, signed.decode()?);
            let validity: AnyRef<'_> = signed.decode()?;
            let dates =
                validity.sequence(|dates| Ok((date(dates.decode()?)?, date(dates.decode()?)?)))?;
            while !signed.is_finished() {
                let _: AnyRef<'_> = signed.decode()?;
            }
            Ok(dates)
        })
    })
}

fn date(any: AnyRef<'_>) -> der::Result<Duration> {
    if any.tag() == UtcTime::TAG {
        Ok(any.decode_as::<UtcTime>()?.to_unix_duration())
    } else {
        Ok(any.decode_as::<GeneralizedTime>()?.to_unix_duration())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    /// The configuration of a certificate with these years.
    fn made(folder: &Path, years: (i32, i32)) -> TlsConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["rift".to_owned()]).unwrap();
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let files = TlsConfig {
            cert: folder.join("cert.pem"),
            key: folder.join("key.pem"),
        };
        std::fs::write(&files.cert, params.self_signed(&key).unwrap().pem()).unwrap();
        files
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn dates_are_read_in_both_of_their_forms() {
        let folder = tempfile::tempdir().unwrap();
        for (from, until) in [(2020, 2049), (2020, 2060), (1980, 9999)] {
            let files = made(folder.path(), (from, until));
            let dates = configured(&files).unwrap().unwrap();
            assert_eq!(dates.from, at(&format!("{from}-01-01T00:00:00Z")));
            assert_eq!(dates.until, at(&format!("{until}-01-01T00:00:00Z")));
        }
    }

    #[test]
    fn certificate_of_use_is_one_that_is_valid_now_and_for_a_month() {
        let folder = tempfile::tempdir().unwrap();
        let files = made(folder.path(), (2020, 2030));
        let dates = configured(&files).unwrap().unwrap();
        let look = |now: &str| dates.look(&files, at(now));
        assert_eq!(look("2025-06-01T00:00:00Z"), Ok(()));
        assert_eq!(look("2029-12-01T00:00:00Z"), Ok(()));
        let soon = look("2029-12-03T00:00:00Z").unwrap_err();
        assert!(soon.is_warning(), "{soon}");
        assert!(look("2030-01-01T00:00:00Z").unwrap_err().is_warning());
        let expired = look("2030-01-01T00:00:01Z").unwrap_err();
        assert!(!expired.is_warning());
        assert!(
            expired
                .to_string()
                .ends_with("expired at 2030-01-01T00:00:00Z")
        );
        let early = look("2019-12-31T23:59:59.5Z").unwrap_err();
        assert!(!early.is_warning());
        assert!(
            early
                .to_string()
                .contains("clock says 2019-12-31T23:59:59Z"),
            "{early}"
        );
    }

    #[test]
    fn chain_is_valid_as_long_as_all_of_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let first = std::fs::read_to_string(made(folder.path(), (2020, 2060)).cert).unwrap();
        let files = made(folder.path(), (2022, 2030));
        let second = std::fs::read_to_string(&files.cert).unwrap();
        std::fs::write(&files.cert, first + &second).unwrap();
        let dates = configured(&files).unwrap().unwrap();
        assert_eq!(dates.from, at("2022-01-01T00:00:00Z"));
        assert_eq!(dates.until, at("2030-01-01T00:00:00Z"));
    }

    #[test]
    fn what_is_no_certificate_has_no_dates() {
        for bytes in [&b""[..], b"\x30\x00", b"\x30\x03\x02\x01\x01", &[0x30; 40]] {
            assert_eq!(validity(bytes), None);
        }
    }
}
