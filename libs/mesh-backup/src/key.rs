//! What a backup is encrypted for, and opened with.

use std::{fs, io::BufReader, path::Path};

use age::{
    Identity, IdentityFile, Recipient, scrypt,
    secrecy::{ExposeSecret as _, SecretString},
    x25519,
};

use crate::{Error, failed};

/// Shortest passphrase that is taken, characters.
const PASSPHRASE_MIN: usize = 12;

/// What a backup is encrypted for.
#[derive(Clone)]
pub enum Lock {
    /// Who has the passphrase.
    Passphrase(SecretString),
    /// Who has the key of one of these.
    Recipients(Vec<x25519::Recipient>),
}

impl Lock {
    /// The passphrase in a file.
    ///
    /// # Errors
    /// If it cannot be read or is too short.
    pub fn passphrase(file: &Path) -> Result<Self, Error> {
        Ok(Self::Passphrase(passphrase(file)?))
    }

    /// Recipients, as `age1…`.
    ///
    /// # Errors
    /// If the list is empty, or an entry is not of this form.
    pub fn recipients(texts: &[String]) -> Result<Self, Error> {
        if texts.is_empty() {
            let what = "say for whom the backup is encrypted: --recipient or --passphrase-file".to_owned();
            return Err(Error::Key(what));
        }
        let parsed = texts.iter().map(|text| {
            text.parse().map_err(|error| Error::Key(format!("{text:?} is not a recipient of the form age1…: {error}")))
        });
        Ok(Self::Recipients(parsed.collect::<Result<_, _>>()?))
    }

    pub(crate) fn encryptor(&self) -> Result<age::Encryptor, Error> {
        let all: Vec<&dyn Recipient> = match self {
            Self::Passphrase(passphrase) => return Ok(age::Encryptor::with_user_passphrase(passphrase.clone())),
            Self::Recipients(recipients) => recipients.iter().map(|one| one as &dyn Recipient).collect(),
        };
        age::Encryptor::with_recipients(all.into_iter()).map_err(|error| Error::Key(error.to_string()))
    }
}

/// What a backup is opened with.
pub struct Unlock(Vec<Box<dyn Identity>>);

impl Unlock {
    /// The passphrase in a file.
    ///
    /// # Errors
    /// If it cannot be read or is too short.
    pub fn passphrase(file: &Path) -> Result<Self, Error> {
        Ok(Self(vec![Box::new(scrypt::Identity::new(passphrase(file)?))]))
    }

    /// The keys in a file of `age-keygen` or [`generate`].
    ///
    /// # Errors
    /// If it cannot be read, or holds no key.
    pub fn identity(file: &Path) -> Result<Self, Error> {
        let bytes = fs::File::open(file).map_err(failed("open", file))?;
        let read = IdentityFile::from_buffer(BufReader::new(bytes)).map_err(failed("read keys in", file))?;
        let keys = read.into_identities().map_err(|error| Error::Key(format!("{}: {error}", file.display())))?;
        if keys.is_empty() {
            return Err(Error::Key(format!("{} holds no key", file.display())));
        }
        Ok(Self(keys.into_iter().map(|key| key as Box<dyn Identity>).collect()))
    }

    pub(crate) fn identities(&self) -> impl Iterator<Item = &dyn Identity> {
        self.0.iter().map(AsRef::as_ref)
    }
}

/// A new key, as text for a file, and its recipient.
pub fn generate() -> (SecretString, String) {
    let key = x25519::Identity::generate();
    (key.to_string(), key.to_public().to_string())
}

/// The text of a key; for writing it into a file, and nowhere else.
pub fn text(key: &SecretString) -> &str {
    key.expose_secret()
}

fn passphrase(file: &Path) -> Result<SecretString, Error> {
    let text = fs::read_to_string(file).map_err(failed("read the passphrase in", file))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.chars().count() < PASSPHRASE_MIN {
        let path = file.display();
        return Err(Error::Key(format!("the passphrase in {path} has fewer than {PASSPHRASE_MIN} characters")));
    }
    Ok(SecretString::from(text.to_owned()))
}
