"""What the chat model learns from: conversations over passages, made on the fly from a seed.

A sample is a list of (text, weight): what the user and the context say weighs little, answers weigh fully. Most
samples are the application's RAG prompt over real or invented passages with several questions in turn; others put the
text elsewhere, greet, ask without context, or repeat tokens (which is how copying starts).
"""

import json
import pathlib
import random

from chat_format import END, NO_CONTEXT, NOT_IN_CONTEXT, RAG_SYSTEM, rag_context
from invented import Inventor
from questions import Questioner, is_quotable, sentences, terms

SYSTEMS = [
    RAG_SYSTEM,
    RAG_SYSTEM,
    RAG_SYSTEM,
    RAG_SYSTEM,
    None,
    None,
    "You are a helpful assistant.",
    "Answer from the context.",
    "Use only the context to answer. Cite the passages.",
    "You are Hearth.",
    "Answer the question with the passages below. Be brief.",
    "You are a helpful assistant. If the answer is not in the context, say so.",
]
QUESTION_LABELS = ["Question: {q}"] * 12 + ["{q}", "{q}", "Q: {q}", "Answer this: {q}", "My question: {q}"]
CONTEXT_LABELS = ["Context:\n"] * 12 + ["Documents:\n", "Passages:\n", "Sources:\n", "", "Here is a text:\n"]

SLIPS = 0.15  # of the answers over passages
REFUSE_FROM = 0.3  # of the training: before it, every question has an answer, so that saying no is not learned first

WHO = "I am Hearth, a small assistant that answers from your documents."
WHAT = "I answer questions about the passages you give me, and I cite them. If they do not hold the answer, I say so."
CHAT = [
    (
        [
            "hello",
            "hi",
            "hey",
            "hello there",
            "good morning",
            "good afternoon",
            "good evening",
            "hi there",
            "greetings",
            "hello hearth",
            "hi hearth",
            "hey there",
            "howdy",
            "good day",
            "hiya",
            "morning",
        ],
        [
            "Hello! Ask me about your documents.",
            "Hello! What would you like to know from your documents?",
            "Hi! How can I help you with your documents?",
        ],
    ),
    (
        [
            "how are you",
            "how are you doing",
            "how is it going",
            "how do you do",
            "are you ok",
            "hi, how are you",
            "hello, how are you today",
            "what's up",
        ],
        ["I am well, thank you. What would you like to know?"],
    ),
    (
        [
            "thanks",
            "thank you",
            "thank you very much",
            "thanks a lot",
            "great, thanks",
            "cheers",
            "thx",
            "perfect, thank you",
            "that helps, thanks",
            "many thanks",
            "ok thanks",
            "thank you for your help",
        ],
        ["You are welcome!", "You are welcome! Ask me if there is more."],
    ),
    (
        [
            "who are you",
            "what are you",
            "what is your name",
            "what's your name",
            "are you a robot",
            "are you human",
            "who am i talking to",
            "introduce yourself",
            "tell me about yourself",
            "are you an ai",
            "what is hearth",
            "which model are you",
            "are you chatgpt",
            "who made you",
        ],
        [WHO, WHO + " " + WHAT],
    ),
    (
        [
            "what can you do",
            "how can you help me",
            "what can i ask you",
            "help",
            "what do you know",
            "how do you work",
            "how does this work",
            "what are you good at",
            "can you help me",
            "what is this",
            "what are you able to do",
            "how do i use you",
            "what can i do here",
        ],
        [WHAT],
    ),
    (
        [
            "bye",
            "goodbye",
            "see you",
            "bye bye",
            "good night",
            "see you later",
            "that is all",
            "have a nice day",
            "farewell",
        ],
        ["Goodbye!", "Goodbye! Come back any time."],
    ),
    (
        [
            "ok",
            "okay",
            "i see",
            "great",
            "nice",
            "good",
            "interesting",
            "cool",
            "wow",
            "perfect",
            "yes",
            "no",
            "sure",
            "alright",
            "got it",
        ],
        ["Good. What else would you like to know?"],
    ),
    (
        [
            "tell me a joke",
            "write a poem",
            "write me a story",
            "write a song",
            "sing something",
            "tell me a story about a cat",
            "draw a picture",
            "write python code that sorts a list",
            "what is the weather today",
            "what time is it",
            "translate this into french",
            "what is the capital of france",
            "who won the world cup",
            "what is 2 + 2",
            "who is the president",
            "how old is the universe",
            "write an email to my boss",
            "play a game with me",
            "what is the meaning of life",
            "recommend a film",
            "what should i eat tonight",
            "how tall is mount everest",
        ],
        [NO_CONTEXT],
    ),
]


class Source:
    """Samples of one seed. `progress` goes from 0 to 1 over the training and makes contexts longer."""

    def __init__(self, data, tokenizer, seed, split="train"):
        self.rng = random.Random(seed)
        self.tokenizer = tokenizer
        self.vocabulary = tokenizer.get_vocab_size()
        passages = [json.loads(line) for line in open(pathlib.Path(data) / "passages.jsonl")]
        self.passages = [p for p in passages if p["split"] == split]
        self.by_document = {}
        for passage in self.passages:
            self.by_document.setdefault(passage["document"], []).append(passage)
        self.questioner = Questioner(self.rng, passages)
        self.inventor = Inventor(self.rng)
        self.copies = False  # whether the model has learned to copy; until then most samples are repetitions

    def sample(self, progress):
        """(token ids, weights) of one sample."""
        rng = self.rng
        start = max(0.0, 1 - progress / 0.2)  # 1 at first, 0 from 20 % on
        repeated = 0.4 * start if self.copies else 0.75
        draw = rng.random()
        if draw < repeated:
            return self.repetition()
        if draw < repeated + 0.04:
            return self.encode(self.greeting())
        if draw < repeated + 0.05:
            return self.encode([(rng.choice(self.passages)["text"], 1.0), (END, 1.0)])
        if rng.random() < 0.4 + 0.2 * start:
            return self.encode(self.invented(progress))
        return self.encode(self.real(progress))

    def encode(self, parts):
        ids, weights = [], []
        for text, weight in parts:
            found = self.tokenizer.encode(text).ids
            ids += found
            weights += [weight] * len(found)
        return ids, weights

    def repetition(self):
        rng = self.rng
        length = rng.randint(4, 120 if self.copies else 48)
        ids = [rng.randrange(300, self.vocabulary) for _ in range(length)]
        return ids * 2, [0.0] * length + [0.9] * length

    def greeting(self):
        rng = self.rng
        parts = []
        if system := rng.choice(SYSTEMS):
            parts.append((f"<|system|>{system}{END}", 0.0))
        for _ in range(rng.choice([1, 1, 2, 3])):
            draw = rng.random()
            if draw < 0.2:
                parts += self.turn(self.without_question(), NO_CONTEXT)
                continue
            if draw < 0.32:
                found = self.questioner.about_heading(rng.choice(self.passages))
                if not found:
                    continue
                asked, answer = found[0], NO_CONTEXT
            else:
                asks, answers = rng.choice(CHAT)
                asked, answer = rng.choice(asks), rng.choice(answers)
            parts += self.turn(self.typed(asked), answer)
        return parts or self.turn("Hello", CHAT[0][1][0])

    def without_question(self):
        """A text without a question, or a wish that is none, or nothing that can be read."""
        rng = self.rng
        passage = rng.choice(self.passages)
        text = " ".join(self.excerpt(passage, rng.choice([5, 20, 60, 150]), True))
        wish = rng.choice(["Shorten", "Translate", "Rewrite", "Continue", "Improve", "Explain", "Sum up"])
        letters = rng.choice(["abcdefghijklmnopqrstuvwxyz ", "0123456789.,- ", "xyz!?# "])
        return rng.choice(
            [
                text,
                text[: rng.randint(3, 200)],
                f"{wish} {rng.choice(['this', 'the following', 'this text'])}:\n{text}",
                f"{wish} {passage['heading']}",
                f"Write {rng.choice(['an essay', 'a song', 'a letter', 'a page'])} about {passage['heading']}",
                "".join(rng.choice(letters) for _ in range(rng.randint(3, 60))),
            ]
        )

    def typed(self, text):
        rng = self.rng
        text = text if rng.random() < 0.3 else text[0].upper() + text[1:]
        if text[-1].isalnum():
            text += (
                rng.choice(["?", "?", ""])
                if text.split()[0].lower() in ("who", "what", "how", "are", "can", "which")
                else rng.choice(["", ".", "!"])
            )
        return text

    def turn(self, asked, answer):
        return [(f"<|user|>{asked}{END}", 0.0), ("<|assistant|>", 0.0), (f"{answer}{END}", 1.0)]

    def conversation(self, passages, questions):
        """passages: [(title, text)]; questions: [(question, answer or None, passage number)]"""
        rng = self.rng
        system = rng.choice(SYSTEMS)
        numbered = rng.random() < 0.93
        if numbered:
            context = rag_context(passages)
        else:
            context = "\n\n".join(f"{title}\n{text}" if rng.random() < 0.5 else text for title, text in passages)
        context = rng.choice(CONTEXT_LABELS) + context
        parts = []
        if rng.random() < 0.07:  # the context is in the system's turn
            parts.append((f"<|system|>{(system or '')}\n\n{context}{END}", -1.0))
            context = None
        elif system:
            parts.append((f"<|system|>{system}{END}", 0.0))
        for question, answer, number in questions:
            if answer is None:
                answer = NOT_IN_CONTEXT
            elif numbered:
                answer += f" [{number}]"
            asked = question
            if context is not None:
                label = rng.choice(QUESTION_LABELS).format(q=question)
                draw = rng.random()
                before = "" if draw < 0.08 else f"{label}\n\n"
                after = "" if 0.08 <= draw < 0.11 else f"\n\n{label}"
                asked = before + context + after
                context = None
            elif rng.random() < 0.5:
                asked = f"Question: {question}"
            elif rng.random() < 0.05:
                asks, answers = rng.choice(CHAT[:7])
                parts += self.turn(self.typed(rng.choice(asks)), rng.choice(answers))
            parts += [(f"<|user|>{asked}{END}", -1.0), ("<|assistant|>", 0.0), *self.said(answer), (END, 1.0)]
        return parts

    def said(self, answer):
        """An answer, now and then with a slip: words said twice, which is not learned, and how it goes on after them,
        which is. Who copies and has slipped once would else slip for ever."""
        rng = self.rng
        words = answer.split(" ")
        if rng.random() > SLIPS or len(words) < 6:
            return [(answer, 1.0)]
        length = rng.randint(1, min(8, len(words) - 3))
        end = rng.randint(length, len(words) - 2)
        again = (" " + " ".join(words[end - length : end])) * rng.choice([1, 1, 2, 3])
        return [(" ".join(words[:end]), 1.0), (again, 0.0), (" " + " ".join(words[end:]), 1.0)]

    def invented(self, progress):
        rng = self.rng
        most = 2 + round(3 * min(1.0, progress / 0.3))
        asked = rng.choice([1, 1, 1, 2, 2, 3, 4])
        passages, questions = self.inventor.reading(
            rng.randint(1, most), rng.randint(1, most), asked, answerable=1 if progress < REFUSE_FROM else 0.8
        )
        return self.conversation(passages, [(q, answer, number) for q, answer, number, _ in questions])

    def excerpt(self, passage, words, keep_start):
        """Whole sentences of a passage, at most so many words."""
        said = sentences(passage["text"])
        start = 0 if keep_start else self.rng.randrange(max(1, len(said) - 1))
        kept, count = [], 0
        for sentence in said[start:]:
            count += len(sentence.split())
            if kept and count > words:
                break
            kept.append(sentence)
        return kept

    def title(self, passage, with_heading):
        title, heading = passage["title"], passage["heading"]
        if heading == title:
            return title
        if with_heading:
            return self.rng.choice([f"{title}: {heading}", f"{title}: {heading}", f"{title} - {heading}", heading])
        return title

    def real(self, progress):
        """Passages of one document and of others, with questions about some and about none of them."""
        rng = self.rng
        words = (
            rng.choice([25, 40, 60])
            if progress < 0.4
            else rng.choice([40, 60, 90, 140])
            if progress < 0.75
            else rng.choice([50, 80, 120, 180, 250])
        )
        count = rng.randint(1, 2 if progress < 0.15 else 3 if progress < 0.5 else 5)
        first = rng.choice(self.passages)
        near = self.by_document[first["document"]]
        chosen, missing = [first], []
        while len(chosen) < count:
            other = rng.choice(near) if rng.random() < 0.6 else rng.choice(self.passages)
            if other in chosen:
                other = rng.choice(self.passages)
            chosen.append(other)
        rng.shuffle(chosen)
        if progress >= REFUSE_FROM and rng.random() < 0.5:
            missing = [p for p in (rng.choice(near), rng.choice(self.passages)) if p not in chosen]
        shown, titled = [], []
        for passage in chosen:
            shown.append(self.excerpt(passage, words, rng.random() < 0.85))
            titled.append(rng.random() < 0.85)
        passages = [(self.title(p, t), " ".join(s)) for p, t, s in zip(chosen, titled, shown)]
        everything = " ".join(f"{title} {text}" for title, text in passages)
        known = set(terms(everything))
        questions = []
        for _ in range(rng.choice([1, 1, 1, 1, 1, 2, 3])):
            if missing and rng.random() < 0.45:
                other = rng.choice(missing)
                found = self.questioner.about_heading(other)
                if not found:
                    quotable = [s for s in sentences(other["text"]) if is_quotable(s)]
                    found = (self.questioner.about_sentence(rng.choice(quotable)), None) if quotable else None
                # what the context does hold after all is not asked
                if found and len([t for t in set(terms(found[0])) if t in known]) <= 0.5 * len(set(terms(found[0]))):
                    questions.append((found[0], None, None))
                continue
            number = rng.randrange(len(chosen))
            passage, said = chosen[number], shown[number]
            if titled[number] and said[0] == sentences(passage["text"])[0] and rng.random() < 0.75:
                same = [p for p in chosen if p["heading"] == passage["heading"]]
                found = self.questioner.about_heading(passage)
                if found and found[1] in said and len(same) == 1:
                    questions.append((found[0], found[1], number + 1))
                continue
            quotable = [s for s in said if is_quotable(s)]
            if quotable:
                sentence = rng.choice(quotable)
                questions.append((self.questioner.about_sentence(sentence), sentence, number + 1))
        if not questions:
            return self.real(progress)
        return self.conversation(passages, questions)
