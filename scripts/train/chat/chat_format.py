"""How a conversation and a question over passages are written: the one place that training and evaluation share.

A turn is <|role|>text<|end|>; there is no begin-of-text token. The RAG prompt is the application's own.
"""

ROLES = ("system", "user", "assistant")
END = "<|end|>"
PADDING = "<|pad|>"
SPECIAL_TOKENS = [PADDING, END] + [f"<|{role}|>" for role in ROLES]

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)

RAG_SYSTEM = "You are Hearth, a helpful assistant. Answer from the context."
NOT_IN_CONTEXT = "The context does not say."
NO_CONTEXT = "I have no passage to answer that from. Give me a document or a text, and ask about it."


def rag_context(passages):
    """passages: (title, text) in order; they are numbered from 1."""
    return "\n\n".join(f"[{n}] {title}\n{text}" for n, (title, text) in enumerate(passages, 1))


def rag_prompt(passages, question):
    """The question goes first, so that whoever reads the context from left to right knows what to look for, and last,
    next to the answer."""
    return f"Question: {question}\n\nContext:\n{rag_context(passages)}\n\nQuestion: {question}"
