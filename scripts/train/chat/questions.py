"""Questions that a passage's heading or one of its sentences answers, made by rule.

The answer to each is a sentence of the passage, word for word: the model is a reader that quotes.
"""

import collections
import re

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'“(]?[A-Z0-9`])")
POOR = re.compile(
    r"^(See|Changed in|New in|Added in|Deprecated|Note that$|For example|Contributed|Availability|Source code|\("
    r"|This example)"
)
GENERIC = re.compile(
    r"^(examples?|notes?|description|explanation|summary|safety|overview|introduction|requirements|tip|errors?|panics|warning|fixed"
    r"|added|changed|compatibility|details|usage|parameters:?|returns?|options|name|see also|history|nightly only"
    r"|testing|caution"
    r"|migration|limitations|nightly|other.*|note:.*|new and.*|bugs|conclusion|todo|author|arguments|outputs|synopsis"
    r"|misc.*|faq|.*faq"
    r"|important|stability|files|environment|feature flags|changes.*|what.s new.*|optimizations|references"
    r"|design|rationale)$",
    re.I,
)
IDENTIFIER = re.compile(r"^(-{1,2})?[\w.:]*[\w]+(\(\))?[!]?$")
STOPWORDS = set(
    """a an and are as at be been but by can do does for from has have how i if in into is it its may more must no
 not of on one only or other should so some such than that the their them then there these they this to use
 used using was what when where which while who why will with would you your all any each also about""".split()
)
WORD = re.compile(r"[A-Za-z_][\w.:-]*\w|\w")

# A sentence that reads so answers a question that reads so.
RULES = [
    (
        re.compile(r"^(?:The |An? )?(?P<x>[\w`.:()_ -]{2,40}?) (?P<v>is|are) (?:an?|the|used|one|not|called) "),
        ["What {v} {x}?", "What {v} {x}?", "Explain {x}.", "What does {x} mean?", "Tell me about {x}."],
    ),
    (
        re.compile(
            r"^(?:The )?(?P<x>[\w`.:()_ -]{2,40}?) (?P<v>return|specifie|control|define|determine|contain|provide"
            r"|create|describe|remove|set|allow|require|support|enable|implement|represent|indicate|cause|convert|prevent|add"
            r"|display|print|run|open|write|read|start|stop|check|send)e?s "
        ),
        ["What does {x} {v}?", "What does {x} do?", "What is {x} for?", "What {v}s {x}?"],
    ),
    (
        re.compile(r"^(?:If|When) (?P<x>[^,;]{8,70}),"),
        ["What happens if {x}?", "What happens when {x}?", "What if {x}?"],
    ),
    (re.compile(r"^To (?P<x>[a-z][^,;]{8,60}),"), ["How do I {x}?", "How can I {x}?", "how to {x}", "How do you {x}?"]),
    (
        re.compile(r"^(?P<x>[\w`.:()_ -]{2,40}?) (?P<v>can|may|must|should|cannot|must not|should not) be (?P<y>\w+)"),
        ["What {v} be {y}?", "When {v} {x} be {y}?", "How {v} {x} be {y}?"],
    ),
    (
        re.compile(r"\b[Tt]he default (?:value )?(?:for |of )?(?P<x>[\w`.-]{2,30}) is "),
        ["What is the default {x}?", "What is the default for {x}?"],
    ),
    (re.compile(r"\b[Dd]efaults? (?:is|to|value)\b"), ["What is the default?", "What is the default value?"]),
    (re.compile(r"^(?P<x>[A-Z][^,;]{10,70}?) because "), ["Why {x}?", "What is the reason that {x}?"]),
]
HEADING_QUESTIONS = {
    "identifier": [
        "What is {h}?",
        "What does {h} do?",
        "What is {h}?",
        "What does {h} do?",
        "What is {h} for?",
        "Explain {h}.",
        "Describe {h}.",
        "{h}",
        "What does {h} mean?",
        "Tell me about {h}.",
        "How does {h} work?",
        "what is {h}",
        "When would I use {h}?",
    ],
    "doing": [
        "How do I {d}?",
        "How can I {d}?",
        "How do I {d}?",
        "How do you {d}?",
        "how to {d}",
        "What is {h} about?",
        "Explain {l}.",
        "Tell me about {l}.",
    ],
    "name": [
        "What is {l}?",
        "What are {l}?",
        "Tell me about {l}.",
        "Explain {l}.",
        "What does the documentation say about {l}?",
        "Describe {l}.",
        "How does {l} work?",
        "{h}",
        "{h}?",
        "What should I know about {l}?",
        "What is meant by {h}?",
    ],
}
SPAN_QUESTIONS = [
    "What does it say about {k}?",
    "Tell me about {k}.",
    "{k}",
    "{k}?",
    "What about {k}?",
    "Which sentence is about {k}?",
    "How is {k} explained?",
    "Explain {k}.",
    "What is said about {k}?",
    "Quote the sentence about {k}.",
    "Why {k}?",
    "When {k}?",
    "How does {k} work?",
    "What is {k}?",
    "Is it true about {k}?",
    "Can you explain {k}?",
]
LAST_IS_HELD_OUT = {
    "identifier": "Could you explain {h} to me?",
    "doing": "What is the way to {d}?",
    "name": "Give me a short explanation of {l}.",
}


def sentences(text):
    return [s.strip() for s in SENTENCE_END.split(text) if s.strip()]


def is_quotable(sentence):
    words = len(sentence.split())
    return (
        5 <= words <= 42
        and sentence[-1] in ".!?"
        and not POOR.match(sentence)
        and sentence.count("(") == sentence.count(")")
    )


def terms(text):
    return [w.lower() for w in WORD.findall(text) if w.lower() not in STOPWORDS]


class Questioner:
    """Rules over a corpus whose words have been counted."""

    def __init__(self, rng, passages):
        self.rng = rng
        self.count = collections.Counter(w for p in passages for w in set(terms(p["text"])))

    def verb(self, gerund):
        stem = gerund.lower()[:-3]
        candidates = [stem, stem + "e"] + ([stem[:-1]] if len(stem) > 3 and stem[-1] == stem[-2] else [])
        best = max(candidates, key=lambda w: self.count[w])
        return best if self.count[best] > 3 else None

    def kind_of_heading(self, heading):
        """(kind, the forms that the question's wordings take), or None of a heading that names nothing."""
        heading = re.sub(
            r"\s*\((string|integer|boolean|enum|floating point)\)$"
            r"|^(Struct|Function|Trait|Enum|Macro|Module|Type|Constant|Keyword|Primitive Type) (?=\w+$)",
            "",
            heading,
        ).strip(" :.")
        heading = re.sub(r"^([\w.]+) — .*", r"\1", heading)
        if GENERIC.match(heading) or len(heading) < 3 or len(heading) > 70 or not re.search("[A-Za-z]{2}", heading):
            return None
        if heading.endswith("?"):
            return "asked", {"h": heading}
        if (
            IDENTIFIER.match(heading)
            and " " not in heading
            and (re.search(r"[._:()\-]", heading) or self.count[heading.lower()] < 300)
        ):
            return "identifier", {"h": heading}
        first, _, rest = heading.partition(" ")
        if first.endswith("ing") and rest and (verb := self.verb(first)):
            return "doing", {"h": heading, "l": first.lower() + " " + rest, "d": f"{verb} {rest}"}
        if re.match(r"^(How|What|Why|When) ", heading):
            return "asked", {"h": heading}
        lower = heading if re.search(r"[A-Z]{2}|[._:]", heading) else heading[0].lower() + heading[1:]
        return "name", {"h": heading, "l": lower}

    def about_heading(self, passage, held_out_wording=False):
        """(question, answering sentence) or None: the first sentence that can be quoted."""
        found = self.kind_of_heading(passage["heading"])
        said = [s for s in sentences(passage["text"])[:3] if is_quotable(s)]
        if not found or not said:
            return None
        kind, forms = found
        if kind == "asked":
            return forms["h"], said[0]
        wording = LAST_IS_HELD_OUT[kind] if held_out_wording else self.rng.choice(HEADING_QUESTIONS[kind])
        return wording.format(**forms), said[0]

    def about_sentence(self, sentence):
        """A question by rule, else one of the sentence's own rarer words in a row or by pairs."""
        rng = self.rng
        if rng.random() < 0.65:
            rules = [(match, wordings) for pattern, wordings in RULES if (match := pattern.search(sentence))]
            if rules:
                match, wordings = rng.choice(rules)
                parts = {
                    k: (v[0].lower() + v[1:] if v and k == "x" and not re.search(r"[A-Z_.]", v[1:]) else v)
                    for k, v in match.groupdict().items()
                }
                if parts.get("x", "word").split()[0].lower() not in (
                    "it",
                    "this",
                    "these",
                    "that",
                    "there",
                    "they",
                    "you",
                    "we",
                    "he",
                    "which",
                    "following",
                ):
                    return rng.choice(wordings).format(**parts)
        words = sentence.rstrip(".!?").split()
        if rng.random() < 0.6:
            length = rng.randint(2, 5)
            start = max(
                range(max(1, len(words) - length)),
                key=lambda i: (
                    rng.random() + sum(1 / (1 + self.count[t]) ** 0.3 for t in terms(" ".join(words[i : i + length])))
                ),
            )
            key = " ".join(words[start : start + length])
        else:
            rare = sorted(set(terms(sentence)), key=lambda t: self.count[t] * (0.3 + rng.random()))[: rng.randint(2, 4)]
            key = rng.choice([" ", " and ", " "]).join(rng.sample(rare, len(rare))) if rare else " ".join(words[:4])
        return rng.choice(SPAN_QUESTIONS).format(k=key.strip(" ,;:()"))
