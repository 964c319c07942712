//! Describes a file that was given as a GGUF and is not one, and says what to do with it.
//!
//! People pass what their download left them: another format of the same model, an error page, a pointer file.

/// One clause to follow "... is not a GGUF file: ".
pub(super) fn describe(bytes: &[u8]) -> String {
    let known = if bytes.is_empty() {
        "it is empty; the download did not begin, fetch it again"
    } else if bytes.len() < 4 && b"GGUF".starts_with(bytes) {
        "it ends inside the first four bytes; the download was cut short, fetch it again"
    } else if bytes.iter().take(4096).all(|byte| *byte == 0) {
        "it begins with zeros only; the download reserved the space and did not fill it, fetch it again"
    } else if bytes.starts_with(b"version https://git-lfs") {
        "it is a Git LFS pointer, not the file that it points to; run `git lfs pull` in its repository, or use \
         `hearth pull`"
    } else if is_safetensors(bytes) {
        "it is a safetensors file; chat models are read from GGUF, so look for the model's GGUF repository, or convert \
         it with llama.cpp's convert_hf_to_gguf.py (embedding models are read from safetensors: give --embedding-model \
         their directory)"
    } else if bytes.starts_with(b"PK\x03\x04") {
        "it is a zip archive, as PyTorch checkpoints (.bin, .pt, .pth) are; convert the model with llama.cpp's \
         convert_hf_to_gguf.py, or look for its GGUF repository"
    } else if bytes[0] == 0x80 && bytes.get(1).is_some_and(|version| (2..=5).contains(version)) {
        "it is a Python pickle, as old PyTorch checkpoints are; convert the model with llama.cpp's \
         convert_hf_to_gguf.py, or look for its GGUF repository"
    } else if [b"lmgg", b"fmgg", b"tjgg", b"algg"].iter().any(|magic| bytes.starts_with(*magic)) {
        "it is a GGML file from before GGUF (2023); look for the model's GGUF repository"
    } else if bytes.starts_with(&[0x1F, 0x8B])
        || bytes.starts_with(&[0x28, 0xB5, 0x2F, 0xFD])
        || bytes.starts_with(b"\xFD7zXZ")
        || bytes.starts_with(b"7z\xBC\xAF")
        || bytes.get(257..262) == Some(b"ustar")
    {
        "it is an archive or compressed; unpack it first"
    } else {
        return describe_text(bytes);
    };
    known.to_owned()
}

/// Eight bytes of header length, then a JSON object.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    u64::from_le_bytes(*length) < 1 << 32 && rest.first() == Some(&b'{')
}

fn describe_text(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(200)];
    let start = String::from_utf8_lossy(start);
    let text = start.trim_start_matches('\u{FEFF}').trim_start();
    let lower = text.to_ascii_lowercase();
    if lower.starts_with("<!doctype") || lower.starts_with("<html") || lower.starts_with("<?xml") {
        return "it is a web page, probably an error or sign-in page saved in place of the file; fetch it with \
                `hearth pull`, or from the hub's \"resolve\" address"
            .to_owned();
    }
    if text.starts_with('{') || text.starts_with('[') {
        return "it is JSON, such as a model's configuration or a server's error message; give the .gguf file itself"
            .to_owned();
    }
    let is_text = !text.is_empty()
        && !text.chars().any(|c| c == char::REPLACEMENT_CHARACTER || (c.is_control() && !c.is_whitespace()));
    if is_text {
        let line: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
        return format!("it is text that begins {line:?}; give the .gguf file itself");
    }
    let magic = &bytes[..bytes.len().min(4)];
    format!("it begins with the bytes {magic:02x?} instead of \"GGUF\"; give a .gguf file")
}

#[cfg(test)]
mod tests {
    use super::describe;

    #[test]
    fn names_what_people_mistake_for_a_model() {
        let safetensors = [&40u64.to_le_bytes()[..], b"{\"__metadata__\":{}}"].concat();
        let tar = [vec![b'a'; 257], b"ustar".to_vec()].concat();
        let cases: [(&[u8], &str); 16] = [
            (b"", "it is empty"),
            (b"GG", "cut short"),
            (&[0; 5000], "zeros"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
            (&safetensors, "safetensors"),
            (b"PK\x03\x04....", "zip archive"),
            (b"\x80\x02}q", "pickle"),
            (b"tjgg\x03\0\0\0", "before GGUF"),
            (&[0x1F, 0x8B, 8, 0], "unpack"),
            (&tar, "unpack"),
            (b"\n<!DOCTYPE html><html>", "web page"),
            (b"<HTML><body>", "web page"),
            (b"{\"error\":\"Repository not found\"}", "JSON"),
            (b"Entry not found", "text that begins \"Entry not found\""),
            (b"\x7FELF\x02\x01", "[7f, 45, 4c, 46]"),
            (b"\xFF", "[ff]"),
        ];
        for (bytes, expected) in cases {
            let said = describe(bytes);
            assert!(said.contains(expected), "{expected:?} is not in {said:?}");
        }
    }
}
