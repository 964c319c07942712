//! Templates for model files without one, and for `--chat-template NAME`.
//!
//! Each writes one published turn format. Names are llama-server's where it supports the same format.

/// A template of our own, compiled the same way as one from a file.
#[derive(Clone, Copy, Debug)]
pub struct BuiltinTemplate {
    pub name: &'static str,
    pub source: &'static str,
}

/// Content as text, whether given as text, as parts or not at all.
macro_rules! text_macro {
    () => {
        "{%- macro text(content) -%}\
         {%- if content is string -%}{{ content }}\
         {%- elif content is iterable and content is not mapping -%}\
         {%- for part in content -%}{{ part.text if part is mapping else part }}{%- endfor -%}\
         {%- endif -%}\
         {%- endmacro -%}"
    };
}

const CHATML: BuiltinTemplate = BuiltinTemplate {
    name: "chatml",
    source: concat!(
        text_macro!(),
        "{%- for message in messages -%}\
         {{ '<|im_start|>' + message.role + '\n' + text(message.content) + '<|im_end|>\n' }}\
         {%- endfor -%}\
         {%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    ),
};

const LLAMA3: BuiltinTemplate = BuiltinTemplate {
    name: "llama3",
    source: concat!(
        text_macro!(),
        "{{- bos_token -}}\
         {%- for message in messages -%}\
         {%- set role = 'ipython' if message.role == 'tool' else message.role -%}\
         {{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' + text(message.content) | trim + '<|eot_id|>' }}\
         {%- endfor -%}\
         {%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"
    ),
};

/// Gemma has no system turn: its authors put the system text before the first question.
const GEMMA: BuiltinTemplate = BuiltinTemplate {
    name: "gemma",
    source: concat!(
        text_macro!(),
        "{{- bos_token -}}\
         {%- set state = namespace(system='') -%}\
         {%- for message in messages -%}\
         {%- if message.role == 'system' or message.role == 'developer' -%}\
         {%- set state.system = state.system + text(message.content) | trim + '\n\n' -%}\
         {%- elif message.role == 'assistant' -%}\
         {{ '<start_of_turn>model\n' + text(message.content) | trim + '<end_of_turn>\n' }}\
         {%- else -%}\
         {{ '<start_of_turn>user\n' + state.system + text(message.content) | trim + '<end_of_turn>\n' }}\
         {%- set state.system = '' -%}\
         {%- endif -%}\
         {%- endfor -%}\
         {%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
    ),
};

const LLAMA2: BuiltinTemplate = BuiltinTemplate {
    name: "llama2-sys",
    source: concat!(
        text_macro!(),
        "{%- set state = namespace(system='') -%}\
         {%- for message in messages -%}\
         {%- if message.role == 'system' or message.role == 'developer' -%}\
         {%- set state.system = '<<SYS>>\n' + text(message.content) + '\n<</SYS>>\n\n' -%}\
         {%- elif message.role == 'assistant' -%}\
         {{ ' ' + text(message.content) | trim + ' ' + eos_token }}\
         {%- else -%}\
         {{ bos_token + '[INST] ' + state.system + text(message.content) | trim + ' [/INST]' }}\
         {%- set state.system = '' -%}\
         {%- endif -%}\
         {%- endfor -%}"
    ),
};

/// Mistral's tokenizers from version 3 on have `[INST]` as a token; their prompts have one begin-of-text.
const MISTRAL_V3: BuiltinTemplate = BuiltinTemplate {
    name: "mistral-v3",
    source: concat!(
        text_macro!(),
        "{{- bos_token -}}\
         {%- set state = namespace(system='') -%}\
         {%- for message in messages -%}\
         {%- if message.role == 'system' or message.role == 'developer' -%}\
         {%- set state.system = state.system + text(message.content) + '\n\n' -%}\
         {%- elif message.role == 'assistant' -%}\
         {{ ' ' + text(message.content) | trim + eos_token }}\
         {%- else -%}\
         {{ '[INST] ' + state.system + text(message.content) + '[/INST]' }}\
         {%- set state.system = '' -%}\
         {%- endif -%}\
         {%- endfor -%}"
    ),
};

const PHI3: BuiltinTemplate = BuiltinTemplate {
    name: "phi3",
    source: concat!(
        text_macro!(),
        "{%- for message in messages -%}\
         {{ '<|' + message.role + '|>\n' + text(message.content) + '<|end|>\n' }}\
         {%- endfor -%}\
         {%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
    ),
};

const ZEPHYR: BuiltinTemplate = BuiltinTemplate {
    name: "zephyr",
    source: concat!(
        text_macro!(),
        "{%- for message in messages -%}\
         {{ '<|' + message.role + '|>\n' + text(message.content) + eos_token + '\n' }}\
         {%- endfor -%}\
         {%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
    ),
};

const GRANITE: BuiltinTemplate = BuiltinTemplate {
    name: "granite",
    source: concat!(
        text_macro!(),
        "{%- for message in messages -%}\
         {{ '<|start_of_role|>' + message.role + '<|end_of_role|>' + text(message.content) + eos_token + '\n' }}\
         {%- endfor -%}\
         {%- if add_generation_prompt -%}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif -%}"
    ),
};

const DEEPSEEK3: BuiltinTemplate = BuiltinTemplate {
    name: "deepseek3",
    source: concat!(
        text_macro!(),
        "{{- bos_token -}}\
         {%- for message in messages -%}\
         {%- if message.role == 'system' or message.role == 'developer' -%}{{ text(message.content) + '\n\n' }}\
         {%- elif message.role == 'assistant' -%}{{ '<｜Assistant｜>' + text(message.content) + '<｜end▁of▁sentence｜>' }}\
         {%- else -%}{{ '<｜User｜>' + text(message.content) }}\
         {%- endif -%}\
         {%- endfor -%}\
         {%- if add_generation_prompt -%}{{ '<｜Assistant｜>' }}{%- endif -%}"
    ),
};

const VICUNA: BuiltinTemplate = BuiltinTemplate {
    name: "vicuna",
    source: concat!(
        text_macro!(),
        "{%- for message in messages -%}\
         {%- if message.role == 'system' or message.role == 'developer' -%}{{ text(message.content) + '\n\n' }}\
         {%- elif message.role == 'assistant' -%}{{ 'ASSISTANT: ' + text(message.content) + eos_token + '\n' }}\
         {%- else -%}{{ 'USER: ' + text(message.content) + '\n' }}\
         {%- endif -%}\
         {%- endfor -%}\
         {%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
    ),
};

/// For vocabularies without turn markers: a transcript, which any language model can continue.
const TRANSCRIPT: BuiltinTemplate = BuiltinTemplate {
    name: "transcript",
    source: concat!(
        text_macro!(),
        "{%- for message in messages -%}\
         {{ message.role | capitalize + ': ' + text(message.content) | trim + '\n\n' }}\
         {%- endfor -%}\
         {%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"
    ),
};

const ALL: [&BuiltinTemplate; 11] =
    [&CHATML, &LLAMA3, &GEMMA, &LLAMA2, &MISTRAL_V3, &PHI3, &ZEPHYR, &GRANITE, &DEEPSEEK3, &VICUNA, &TRANSCRIPT];

/// Tokens that identify a turn format if a vocabulary has all of them; the first matching row wins.
const MARKERS: [(&[&str], &BuiltinTemplate); 10] = [
    (&["<|im_start|>", "<|im_end|>"], &CHATML),
    (&["<|start_header_id|>", "<|end_header_id|>"], &LLAMA3),
    (&["<start_of_turn>", "<end_of_turn>"], &GEMMA),
    (&["<|start_of_role|>", "<|end_of_role|>"], &GRANITE),
    (&["<｜User｜>", "<｜Assistant｜>"], &DEEPSEEK3),
    (&["<|user|>", "<|assistant|>", "<|end|>"], &PHI3),
    (&["<|user|>", "<|assistant|>"], &ZEPHYR),
    (&["[INST]", "[/INST]"], &MISTRAL_V3),
    // A SentencePiece vocabulary with byte tokens and nothing else is llama 2's, or derived from it.
    (&["<s>", "</s>", "<0x0A>"], &LLAMA2),
    (&[], &TRANSCRIPT),
];

impl BuiltinTemplate {
    pub(super) fn by_name(name: &str) -> Option<Self> {
        ALL.into_iter().find(|template| template.name == name).copied()
    }

    /// Every name, for error messages.
    pub(super) fn names() -> String {
        ALL.map(|template| template.name).join(", ")
    }

    pub(super) fn for_vocabulary(has_token: impl Fn(&str) -> bool) -> Self {
        let fits = |tokens: &[&str]| tokens.iter().all(|token| has_token(token));
        MARKERS.into_iter().find(|(tokens, _)| fits(tokens)).map_or(TRANSCRIPT, |(_, template)| *template)
    }
}
