//! API keys as they are made and shown once, and the secret that keys their hashes.
//!
//! A key is `hk_`, an id of 16 hexadecimal digits that may be shown, `_`, and 256 random bits in base64url. The store
//! has HMAC-SHA256 of the whole key; the HMAC's key is in a file beside the database, or in one that servers share, so that neither the database nor
//! a copy of it can confirm a guess. A slow password hash would add nothing: 256 random bits cannot be guessed.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use rand::{TryRngCore, rngs::OsRng};
use sha2::Sha256;

/// The prefix of every key, so that people and scanners recognize one.
const PREFIX: &str = "hk_";
const ID_DIGITS: usize = 16;
/// The file in the data directory.
const FILE: &str = "keys.secret";

/// A new key, on its way to its user.
#[derive(Clone)]
pub struct NewKey {
    /// `hk_` and 16 digits: the key's public name.
    pub id: String,
    /// The whole key.
    pub key: String,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl NewKey {
    /// # Errors
    /// If the system has no random numbers.
    pub fn random() -> io::Result<Self> {
        let id = random::<{ ID_DIGITS / 2 }>()?.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let id = format!("{PREFIX}{id}");
        let key = format!("{id}_{}", BASE64_URL_SAFE_NO_PAD.encode(random::<32>()?));
        Ok(Self { id, key })
    }
}

/// The id of a string that looks like one of our keys.
pub fn id_of(key: &str) -> Option<&str> {
    let (digits, _) = key.strip_prefix(PREFIX)?.split_once('_')?;
    let is_id = digits.len() == ID_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| &key[..PREFIX.len() + ID_DIGITS])
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    OsRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// The secret that keys the hashes.
pub struct KeySecret([u8; 32]);

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySecret(..)")
    }
}

impl KeySecret {
    /// `place` is a data directory, or the file itself.
    fn path(place: &Path) -> PathBuf {
        if place.is_dir() { place.join(FILE) } else { place.to_owned() }
    }

    /// Whether a data directory has one, that is, whether a key was ever made in it; or whether the file is there.
    pub fn is_made(place: &Path) -> bool {
        // If the path cannot be checked, the secret is assumed to exist: then keys are required.
        Self::path(place).try_exists().unwrap_or(true)
    }

    /// # Errors
    /// If there is none, or it is not valid; the message names the file and what to do.
    pub fn load(place: &Path) -> anyhow::Result<Self> {
        let path = Self::path(place);
        let bytes = fs::read(&path).map_err(|error| {
            anyhow::anyhow!(
                "{}: {error}. Keys are checked with it: bring it back from a backup, or make new keys with `hearth keys \
                 create`",
                path.display()
            )
        })?;
        let secret = bytes.try_into().map_err(|_| {
            anyhow::anyhow!("{} is damaged, it must have 32 bytes: bring it back from a backup", path.display())
        })?;
        Ok(Self(secret))
    }

    /// The secret of a data directory or a file, created if there is none.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn load_or_make(place: &Path) -> anyhow::Result<Self> {
        let path = Self::path(place);
        if !path.try_exists()? {
            make(&path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        }
        Self::load(&path)
    }

    /// A value by which servers find whether they have the same secret. It does not reveal the secret.
    pub fn check_value(&self) -> [u8; 32] {
        self.hash("the check value of the secret of keys")
    }

    pub fn hash(&self, key: &str) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(key.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

/// Creates it atomically: no process sees a partial file, and of two that create one concurrently, the second uses the
/// first's.
fn make(path: &Path) -> io::Result<()> {
    let half = path.with_extension(format!("secret-{}", uuid::Uuid::new_v4().simple()));
    let made = (|| {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&half)?;
        file.write_all(&random::<32>()?)?;
        file.sync_all()?;
        match fs::hard_link(&half, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // A key that was shown is worthless if a power cut takes the secret.
        if cfg!(unix) { fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all() } else { Ok(()) }
    })();
    // The file may not exist.
    let _ = fs::remove_file(&half);
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_an_id_that_is_found_again_and_256_bits() {
        let new = NewKey::random().unwrap();
        assert_eq!(id_of(&new.key), Some(&new.id[..]));
        let secret = &new.key[new.id.len() + 1..];
        assert_eq!((secret.len(), BASE64_URL_SAFE_NO_PAD.decode(secret).unwrap().len()), (43, 32));
        assert_ne!(new.key, NewKey::random().unwrap().key);
        assert!(!format!("{new:?}").contains(secret));
        for other in
            ["", "hk_", "hk_12", "hk_0123456789abcdef", "sk-one", "hk_0123456789abcdeg_x", "hk_ü123456789abcdef_"]
        {
            assert_eq!(id_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_secret_is_made_once_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!KeySecret::is_made(directory.path()));
        assert!(KeySecret::load(directory.path()).unwrap_err().to_string().contains("keys.secret"));
        let one = KeySecret::load_or_make(directory.path()).unwrap();
        let again = KeySecret::load_or_make(directory.path()).unwrap();
        assert_eq!(one.hash("hk_1"), again.hash("hk_1"));
        assert_ne!(one.hash("hk_1"), one.hash("hk_2"));
        assert!(KeySecret::is_made(directory.path()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(KeySecret::path(directory.path())).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        fs::write(KeySecret::path(directory.path()), "short").unwrap();
        assert!(KeySecret::load(directory.path()).unwrap_err().to_string().contains("damaged"));
    }
}
