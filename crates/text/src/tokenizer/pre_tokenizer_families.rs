//! How each model splits its text: the names used in `tokenizer.ggml.pre`, and the patterns behind them.
//!
//! The names are those that llama.cpp's converter writes (`src/llama-vocab.cpp` lists them); the patterns are those of
//! the models' own `tokenizer.json` files, with which those vocabularies learned their merges. Patterns omit the final
//! `\s+(?!\S)|\s+`, which [`Pass::MatchOrWhiteSpace`] adds.

use super::pre_tokenizer::Pass;

/// The meaning of a name in `tokenizer.ggml.pre`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Family {
    pub(super) passes: &'static [Pass],
    /// A word that is itself a token becomes that token, even if the merges give another result.
    pub(super) ignore_merges: bool,
    /// Whether to begin with BOS if the file does not say.
    pub(super) add_bos: bool,
    /// Tokens are UTF-8 with U+2581 for a space and byte fallback, instead of the byte alphabet.
    pub(super) meta_space: bool,
}

const GPT2: Pass = Pass::MatchOrWhiteSpace(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
const LLAMA3: Pass = Pass::MatchOrWhiteSpace(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
const QWEN2: Pass = Pass::MatchOrWhiteSpace(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
const QWEN35: Pass = Pass::MatchOrWhiteSpace(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
const DEEPSEEK3: Pass = Pass::MatchOrWhiteSpace(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"##,
);
const GPT4O: Pass = Pass::MatchOrWhiteSpace(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
);
const TEKKEN: Pass = Pass::MatchOrWhiteSpace(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
);
const CJK: Pass = Pass::Match(r"[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+");
const NUMBERS_BY_THREES: Pass = Pass::Match(r"\p{N}{1,3}");
const SINGLE_NUMBERS: Pass = Pass::Match(r"\p{N}");
const LINES: Pass = Pass::Match(r"[^\n]+|[\n]+");
/// The letters that DeepSeek LLM's tokenizer.json lists one by one.
const DEEPSEEK_LLM_LETTERS: Pass = Pass::Match(concat!(
    r"\s?[",
    r"A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}",
    r"\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}",
    r"\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}",
    r"\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}",
    r"\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}",
    r"\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}",
    r"\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}",
    r"\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}",
    r"\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}",
    r"\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}",
    r"\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}",
    r"\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}",
    r"\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}",
    r"\u{1E900}-\u{1E943}",
    r"]+",
));

const DEFAULT: Family = Family {
    passes: &[Pass::Match(r"[\p{P}\$\+<=>\^~\|]+"), GPT2, Pass::Match(r"\p{N}+"), Pass::Match("[0-9][0-9][0-9]")],
    ignore_merges: false,
    add_bos: false,
    meta_space: false,
};

const fn of(passes: &'static [Pass]) -> Family {
    Family { passes, ignore_merges: false, add_bos: false, meta_space: false }
}

/// The family with this name; `None` for an unknown name, for which callers use [`fallback`].
pub(super) fn family(name: &str) -> Option<Family> {
    Some(match name {
        "default" => DEFAULT,
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
        | "jina-v5-nano" => Family { ignore_merges: true, add_bos: true, ..of(&[LLAMA3]) },
        "dbrx" | "smaug-bpe" | "smaug" | "chatglm-bpe" => of(&[LLAMA3]),
        "glm4" | "glm5" => Family { ignore_merges: true, ..of(&[LLAMA3]) },
        "minicpm5" => Family {
            ignore_merges: true,
            ..of(&[
                NUMBERS_BY_THREES,
                Pass::MatchOrWhiteSpace(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
                ),
            ])
        },
        "jais-2" => of(&[Pass::MatchOrWhiteSpaceByPowers(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
        )]),
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan" | "solar-open"
        | "grok-2" => of(&[QWEN2]),
        "qwen35" => of(&[QWEN35]),
        "ufakzeka" => {
            of(&[Pass::MatchOrWhiteSpace(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+")])
        }
        "laguna" => of(&[LINES, QWEN2]),
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "jina-es" | "jina-de"
        | "jina-v1-en" | "jina-v2-code" | "jina-v2-es" | "jina-v2-de" | "roberta-bpe" | "gigachat" | "a.x-4.0"
        | "mellum" | "modern-bert" | "exaone4" => of(&[GPT2]),
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b" | "mellum2"
        | "granite" => of(&[SINGLE_NUMBERS, GPT2]),
        "falcon" => of(&[Pass::Match(r"[\p{P}\$\+<=>\^~\|`]+"), GPT2, Pass::Match("[0-9][0-9][0-9]")]),
        "deepseek-llm" => of(&[
            Pass::Match(r"[\r\n]"),
            DEEPSEEK_LLM_LETTERS,
            Pass::Match(r"\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+"),
            Pass::Match(r"\s+$"),
            Pass::Match(r"[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+"),
            Pass::Match(r"\p{N}+"),
        ]),
        "deepseek-coder" => of(&[
            Pass::Match(r"[\r\n]"),
            Pass::Match(r"\s?\p{L}+"),
            Pass::Match(r"\s?\p{P}+"),
            Pass::Match(r"[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+"),
            SINGLE_NUMBERS,
        ]),
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => of(&[NUMBERS_BY_THREES, CJK, DEEPSEEK3]),
        "spark2_5" => of(&[
            NUMBERS_BY_THREES,
            CJK,
            Pass::MatchOrWhiteSpace(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]"##,
            ),
            SINGLE_NUMBERS,
        ]),
        "afmoe" => of(&[
            Pass::GroupNumbers,
            Pass::Match(
                r"[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{F900}-\u{FAFF}\u{3040}-\u{309F}\u{30A0}-\u{30FF}\u{FF65}-\u{FF9F}\u{2F00}-\u{2FDF}\u{E40}-\u{E7F}\u{E80}-\u{EFF}\u{1780}-\u{17FF}\u{1000}-\u{109F}\u{AA60}-\u{AA7F}\u{A9E0}-\u{A9FF}\u{AC00}-\u{D7AF}\u{1100}-\u{11FF}]+",
            ),
            DEEPSEEK3,
        ]),
        "youtu" => Family {
            ignore_merges: true,
            ..of(&[
                Pass::Match(
                    r"[\u{AC00}-\u{D7A3}\u{3131}-\u{318E}]+|[\u{FF01}\u{2026}\u{201C}\u{201D}\u{2018}\u{2019}\u{2014}\u{FF1A}\u{FF1B}\u{FF0C}\u{3001}-\u{303F}\u{FE30}-\u{FE4F}]+|[\u{3105}-\u{312F}]+|[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
                ),
                Pass::MatchOrWhiteSpace(
                    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
                ),
            ])
        },
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => of(&[GPT4O]),
        "granite-embed-multi-97m" => Family { ignore_merges: true, ..of(&[GPT4O]) },
        "tiny_aya" | "cohere2moe" => of(&[Pass::GroupNumbersAtBoundary, GPT4O]),
        "tekken" => Family { ignore_merges: true, add_bos: true, ..of(&[TEKKEN]) },
        "kimi-k2" => of(&[Pass::MatchOrWhiteSpace(
            r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
        )]),
        "superbpe" => of(&[Pass::GroupNumbers]),
        "bailingmoe" | "bailingmoe2" | "llada-moe" => of(&[Pass::MatchOrWhiteSpace(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]",
        )]),
        "seed-coder" => of(&[Pass::MatchOrWhiteSpace(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+",
        )]),
        "exaone-moe" => of(&[Pass::MatchOrWhiteSpace(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]",
        )]),
        "poro-chat" | "bloom" | "gpt3-finnish" => {
            of(&[Pass::Match(r" ?[^(\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})]+")])
        }
        "viking" => {
            of(&[Pass::Match(r" ?[^(\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})]+"), SINGLE_NUMBERS])
        }
        "chameleon" => Family {
            add_bos: true,
            ..of(&[
                Pass::Match("<sentinel:[0-9]+>"),
                Pass::Match("(?:IMGIMG)(?:A|B|C|D|E|F|G|H|I){1,4}Z"),
                Pass::Match(r"[\t\n]|    |  "),
                SINGLE_NUMBERS,
                Pass::Match(r"[\p{P}!-/:-@\[-`{-~]"),
                GPT2,
            ])
        },
        "gemma4" | "granite-embed-multi-311m" => Family { add_bos: true, meta_space: true, ..of(&[LINES]) },
        "sarvam-moe" => Family { meta_space: true, ..of(&[LINES]) },
        _ => return None,
    })
}

/// The pre-tokenizer for models whose own one is unknown: its name, for the log, and its family.
pub(super) fn fallback() -> (&'static str, Family) {
    ("default", DEFAULT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::pre_tokenizer::PreTokenizer, *};

    const NAMES: &str = "default llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx \
        smaug-bpe chatglm-bpe glm4 glm5 minicpm5 jais-2 qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan \
        solar-open grok-2 qwen35 ufakzeka laguna gpt-2 phi-2 mpt olmo jais trillion granite-docling jina-es jina-de \
        jina-v1-en jina-v2-code jina-v2-es jina-v2-de roberta-bpe gigachat a.x-4.0 mellum modern-bert exaone4 \
        starcoder refact command-r smollm codeshell exaone minerva-7b mellum2 falcon deepseek-llm deepseek-coder \
        deepseek-v3 hunyuan-dense joyai-llm hy_v4 spark2_5 afmoe youtu gpt-4o llama4 kanana2 talkie minimax-m2 \
        granite-embed-multi-97m tiny_aya cohere2moe tekken kimi-k2 superbpe bailingmoe bailingmoe2 llada-moe \
        seed-coder exaone-moe poro-chat bloom gpt3-finnish viking chameleon gemma4 granite-embed-multi-311m \
        sarvam-moe";

    /// Every name is known, its patterns compile, and the pieces add up to the whole text.
    #[test]
    fn every_family_cuts_the_whole_text() {
        let text = "Hello,  WORLD's 1234567 tests!\r\n\n  \tかな漢字 한글 ไทย e\u{301}\u{301} 😶‍🌫️ <sentinel:12>x1\u{0}\u{3000} ";
        for name in NAMES.split_whitespace() {
            let family = family(name).unwrap_or_else(|| panic!("{name} is not known"));
            let pieces = PreTokenizer::new(family.passes).unwrap().split(text);
            assert!(pieces.iter().all(|piece| !piece.is_empty()), "{name}");
            assert_eq!(pieces.into_iter().map(|piece| &text[piece]).collect::<String>(), text, "{name}");
        }
        assert_eq!(family("no such model"), None);
    }

    /// A family that splits two words does so regardless of the surrounding text.
    #[test]
    fn words_are_cut_apart_in_any_text() {
        let cutting: Vec<(&str, PreTokenizer)> = NAMES
            .split_whitespace()
            .map(|name| (name, PreTokenizer::new(family(name).expect("it is known").passes).unwrap()))
            .filter(|(_, pre_tokenizer)| pre_tokenizer.split("ab cd") == [0..2, 2..5])
            .collect();
        assert!(cutting.len() > 60, "most families cut words");
        let around = r"[ \t\na-cA-C1-3'!.é字\u{301}]{0,12}";
        let texts = (format!("{around}[a-z]"), format!(" [a-z]{around}"));
        let run = |(before, after): (String, String)| {
            let text = format!("{before}{after}");
            for (name, pre_tokenizer) in &cutting {
                let mut pieces = pre_tokenizer.split(&before);
                let behind = pre_tokenizer.split(&after).into_iter();
                pieces.extend(behind.map(|piece| piece.start + before.len()..piece.end + before.len()));
                prop_assert_eq!(pre_tokenizer.split(&text), pieces, "{}: {:?}", name, text);
            }
            Ok(())
        };
        let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        runner.run(&(texts.0.as_str(), texts.1.as_str()), run).unwrap_or_else(|error| panic!("{error}"));
    }
}
