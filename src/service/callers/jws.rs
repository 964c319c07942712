//! Signatures of tokens (JWS, RFC 7515): the accepted algorithms, and keys, each bound to one of them.
//!
//! The algorithm belongs to the key. It follows from the key's type and from what its issuer says about it (`alg` of
//! the JWK, RFC 7517), and a token cannot choose another one: there is no `none`, and no way to use a public key as a
//! shared secret. The cryptography is aws-lc's, and `hmac`'s, which compares in constant time.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::Sha256;

/// The accepted algorithms of RFC 7518 (section 3.1) and RFC 8037.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Hs256,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    /// By its name in a token's header. Case matters: no variant spelling of `none` is accepted either.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "HS256" => Self::Hs256,
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &RSA_PSS_2048_8192_SHA512,
            _ => return None,
        })
    }
}

enum Material {
    Secret(Vec<u8>),
    /// Modulus and exponent, big-endian.
    Rsa(&'static RsaParameters, RsaPublicKeyComponents<Vec<u8>>),
    Curve(UnparsedPublicKey<Vec<u8>>),
}

/// A key, and the one algorithm that it may be used with.
pub(super) struct VerifyingKey {
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    material: Material,
}

impl std::fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifyingKey").field("id", &self.id).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// A key in a JWKS (RFC 7517, RFC 7518 section 6, RFC 8037), as far as it is read here.
#[derive(Deserialize)]
pub(super) struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl VerifyingKey {
    pub(super) fn of_secret(secret: &[u8]) -> Self {
        Self { id: None, algorithm: Algorithm::Hs256, material: Material::Secret(secret.to_vec()) }
    }

    /// `None`: not a public key for a supported signature.
    pub(super) fn of_jwk(jwk: Jwk) -> Option<Self> {
        let is_for_signatures = jwk.purpose.is_none_or(|purpose| purpose == "sig")
            && jwk.key_ops.is_none_or(|operations| operations.iter().any(|operation| operation == "verify"));
        if !is_for_signatures {
            return None;
        }
        let bytes = |text: &Option<String>| BASE64_URL_SAFE_NO_PAD.decode(text.as_ref()?).ok();
        let said = jwk.alg.as_deref();
        let on_curve = |name: &'static str, verification: &'static dyn VerificationAlgorithm, point: Vec<u8>| {
            let is_of_curve = said.is_none_or(|said| said == name);
            let algorithm = Algorithm::named(name).filter(|_| is_of_curve)?;
            Some((algorithm, Material::Curve(UnparsedPublicKey::new(verification, point))))
        };
        // An uncompressed point (SEC 1, section 2.3.3); coordinates have their full length (RFC 7518, section 6.2.1.2).
        let point = |length: usize| {
            let (x, y) = (bytes(&jwk.x)?, bytes(&jwk.y)?);
            (x.len() == length && y.len() == length).then(|| [&[4][..], &x, &y].concat())
        };
        let (algorithm, material) = match (&jwk.kty[..], jwk.crv.as_deref()) {
            ("RSA", _) => {
                let algorithm = Algorithm::named(said.unwrap_or("RS256"))?;
                let components = RsaPublicKeyComponents { n: bytes(&jwk.n)?, e: bytes(&jwk.e)? };
                (algorithm, Material::Rsa(algorithm.rsa()?, components))
            }
            ("EC", Some("P-256")) => on_curve("ES256", &ECDSA_P256_SHA256_FIXED, point(32)?)?,
            ("EC", Some("P-384")) => on_curve("ES384", &ECDSA_P384_SHA384_FIXED, point(48)?)?,
            ("OKP", Some("Ed25519")) => on_curve("EdDSA", &ED25519, bytes(&jwk.x).filter(|point| point.len() == 32)?)?,
            _ => return None,
        };
        Some(Self { id: jwk.kid, algorithm, material })
    }

    pub(super) fn is_signature(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Secret(secret) => {
                let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
                mac.update(message);
                mac.verify_slice(signature).is_ok()
            }
            Material::Rsa(parameters, key) => key.verify(parameters, message, signature).is_ok(),
            Material::Curve(key) => key.verify(message, signature).is_ok(),
        }
    }
}
