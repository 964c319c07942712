//! Which requests should meet the same engine of an upstream: those whose prompts begin alike, so that the engine finds
//! the beginning in its prefix cache.
//!
//! A conversation that its client names, by the header `x-hearth-session` or the field `prompt_cache_key`, is told
//! apart by that name. Otherwise its prompt tells: its tools and its messages up to the first question, of which the
//! first [`PREFIX_BYTES`] bytes count. Those are the tools and the system prompt where they are long, and the turns of
//! a short conversation have the same ones.

use std::io;

use hearth_domain::GenerateRequest;
use serde_json::Value;

/// Long enough to tell system prompts apart.
const PREFIX_BYTES: usize = 1024;

/// What decides which of an upstream's engines a request prefers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// The conversation, if its client names it, or else the beginning of the prompt.
    #[default]
    Prefix,
    /// The conversation, if its client names it, or else the caller.
    Session,
    /// Nothing: the engine with the least to do is chosen.
    None,
}

impl Affinity {
    pub const ALL: [Self; 3] = [Self::Prefix, Self::Session, Self::None];

    /// As written in the settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Session => "session",
            Self::None => "none",
        }
    }

    /// The key of a generation, whose translated body this is: requests with the same key prefer the same engine.
    pub(super) fn key(self, request: &GenerateRequest, body: &Value) -> Option<u64> {
        match (self, session(request)) {
            (Self::None, _) => None,
            (Self::Prefix | Self::Session, Some(session)) => Some(session),
            (Self::Session, None) => Some(hash_of(|hash| {
                hash.update(request.account.caller().id.as_bytes());
            })),
            (Self::Prefix, None) => Some(hash_of(|hash| {
                let mut prefix = Prefix { hash, left: PREFIX_BYTES };
                let messages = body.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let is_question = |message: &Value| message["role"] == "user";
                let opening = messages.iter().position(is_question).map_or(messages.len(), |first| first + 1);
                let parts = body.get("tools").into_iter().chain(&messages[..opening]).chain(body.get("prompt"));
                for part in parts {
                    // The writer ends the serialization when it has what it needs.
                    drop(serde_json::to_writer(&mut prefix, part));
                }
            })),
        }
    }
}

impl std::str::FromStr for Affinity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|affinity| affinity.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not an affinity; use prefix, session or none"))
    }
}

/// The hash of the conversation that a request's client names; each caller's conversations are its own.
pub(super) fn session(request: &GenerateRequest) -> Option<u64> {
    let name = request.account.session().or(request.session.as_deref())?;
    Some(hash_of(|hash| {
        hash.update(request.account.caller().id.as_bytes()).update(&[0]).update(name.as_bytes());
    }))
}

/// The hash of an engine's address, which its rank for a key depends on. It is the same in every process.
pub(super) fn seed_of(address: &str) -> u64 {
    hash_of(|hash| {
        hash.update(address.as_bytes());
    })
}

fn hash_of(write: impl FnOnce(&mut blake3::Hasher)) -> u64 {
    let mut hash = blake3::Hasher::new();
    write(&mut hash);
    let mut first = [0; 8];
    hash.finalize_xof().fill(&mut first);
    u64::from_le_bytes(first)
}

/// Hashes the first bytes that are written to it and refuses the rest.
struct Prefix<'a> {
    hash: &'a mut blake3::Hasher,
    left: usize,
}

impl io::Write for Prefix<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.left);
        self.hash.update(&bytes[..taken]);
        self.left -= taken;
        // To `write_all`, zero bytes written is an error.
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_domain::{Account, Prompt};
    use serde_json::json;

    fn request(session: Option<&str>) -> GenerateRequest {
        let session = session.map(ToOwned::to_owned);
        GenerateRequest { session, ..GenerateRequest::new(Account::unrecorded(), Prompt::Text(String::new())) }
    }

    #[test]
    fn turns_of_a_conversation_have_one_key() {
        let body = |system: &str, more: &[&str]| {
            let said = more.iter().map(|text| json!({"role": "user", "content": text}));
            let system = json!({"role": "system", "content": system});
            json!({"messages": std::iter::once(system).chain(said).collect::<Vec<_>>(), "temperature": 1})
        };
        let key = |body: &Value| Affinity::Prefix.key(&request(None), body).unwrap();
        let (long, question) = ("You answer for the town. ".repeat(50), "Where do I park? ".repeat(80));
        let first = key(&body(&long, &[&question]));
        assert_eq!(first, key(&body(&long, &[&question, "And on Sundays?"])));
        assert_eq!(first, key(&body(&long, &["Something else"])), "the system prompt alone fills the prefix");
        assert_ne!(first, key(&body(&long.to_uppercase(), &[&question])));
        let short = key(&body("Be brief.", &["Where do I park?"]));
        assert_eq!(short, key(&body("Be brief.", &["Where do I park?", "And on Sundays?"])));
        assert_ne!(short, key(&body("Be brief.", &["Something else"])), "the first question tells them apart");
        let tools = |name: &str| json!({"tools": [{"name": name}], "messages": []});
        assert_ne!(key(&tools("a")), key(&tools("b")));
        assert_ne!(key(&json!({"prompt": [1, 2]})), key(&json!({"prompt": [1, 3]})));
    }

    #[test]
    fn a_named_conversation_is_told_apart_by_its_name() {
        let (one, other) = (json!({"prompt": "a"}), json!({"prompt": "b"}));
        for affinity in [Affinity::Prefix, Affinity::Session] {
            let key = |session, body| affinity.key(&request(session), body);
            assert_eq!(key(Some("s"), &one), key(Some("s"), &other));
            assert_ne!(key(Some("s"), &one), key(Some("t"), &one));
        }
        assert_eq!(Affinity::Session.key(&request(None), &one), Affinity::Session.key(&request(None), &other));
        assert_eq!(Affinity::None.key(&request(Some("s")), &one), None);
        for affinity in Affinity::ALL {
            assert_eq!(affinity.as_str().parse(), Ok(affinity));
        }
        assert!("sticky".parse::<Affinity>().is_err());
    }
}
