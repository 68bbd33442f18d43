//! Why a handshake failed, in words that tell whoever reads the log what to do.

use std::{fmt, io, time::Duration};

use rustls::{AlertDescription, CertificateError, Error as TlsError};

use crate::telemetry::counters::HandshakeFailure;

/// A handshake that failed.
#[derive(Debug)]
pub struct Refused {
    /// What it counts as.
    pub failure: HandshakeFailure,
    detail: String,
}

impl Refused {
    /// With the error of the handshake.
    #[must_use]
    pub fn because_of(error: &io::Error) -> Self {
        let tls = error.get_ref().and_then(|error| error.downcast_ref());
        Self {
            failure: tls.map_or(HandshakeFailure::Other, failure),
            detail: error.to_string(),
        }
    }

    /// It wasn't done within `limit`.
    #[must_use]
    pub fn too_slow(limit: Duration) -> Self {
        Self {
            failure: HandshakeFailure::Timeout,
            detail: format!("not done within {} s", limit.as_secs()),
        }
    }

    /// It had taken its time, and there was no room for another producer otherwise.
    #[must_use]
    pub fn for_another() -> Self {
        Self {
            failure: HandshakeFailure::NoRoom,
            detail: "not done, and another producer needs the room".to_owned(),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.failure {
            HandshakeFailure::NoCertificate => {
                "the client presented no certificate, which ingest.tls.client_auth demands"
            }
            HandshakeFailure::UnknownAuthority => {
                "the client's certificate is of no authority in ingest.tls.client_ca"
            }
            HandshakeFailure::Expired => "the client's certificate isn't valid now",
            HandshakeFailure::Incompatible => "the client doesn't offer what TLS 1.3 needs",
            HandshakeFailure::NotTrusted => "the client doesn't trust ingest.tls.cert",
            HandshakeFailure::NoRoom => "handshake",
            HandshakeFailure::Timeout | HandshakeFailure::Other => "TLS handshake",
        };
        write!(f, "{what}: {}", self.detail)
    }
}

fn failure(error: &TlsError) -> HandshakeFailure {
    match error {
        TlsError::NoCertificatesPresented => HandshakeFailure::NoCertificate,
        TlsError::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                HandshakeFailure::UnknownAuthority
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => HandshakeFailure::Expired,
            _ => HandshakeFailure::Other,
        },
        TlsError::PeerIncompatible(_) => HandshakeFailure::Incompatible,
        TlsError::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            // The server's issuer has the name of one that the client trusts, but isn't it.
            | AlertDescription::DecryptError
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired,
        ) => HandshakeFailure::NotTrusted,
        _ => HandshakeFailure::Other,
    }
}
