"""Facts about invented things: what the model learns reading from, since nothing of it can be remembered.

A fact is a subject, an attribute and a value; every attribute can be stated and asked for in several ways. Names are
made of syllables. For evaluation, `unseen=True` takes names and one in six of the plain attributes that training never
sees, and `unseen_wording=True` the last wording of every statement and every question, which it never sees either.
"""

import hashlib
import re

from facts import COMPANY, DEVICE, FACTS, FILLERS, KIND_NOUN, PERSON, PLACE, PLAIN, PLAIN_QUESTIONS, PLAIN_STATEMENTS

ONSETS = "b br c ch d dr f g gr h j k l l m m n p pl r r s s st t t tr v w z".split() + [""]
NUCLEI = "a e i o u a e i o ai ea oo".split()
CODAS = ["", "", "", "", "l", "m", "n", "n", "r", "s", "x", "nd", "rk", "st"]
PLACE_ENDS = ["", "", "", "ia", "ton", "burg", "stad", "mouth", "ford", "haven", "vale", " Island", " Bay", " Valley"]
COMPANY_ENDS = [" Ltd", " Systems", " Works", " Labs", " Group", " Industries", " Software", "", "", " & Sons"]
THING_ENDS = ["", "", " X2", " 300", " Pro", " Mark 4", " 7", "DB", " Engine", "-9", " Mini", "OS"]
PROJECT_ENDS = ["", "", "ctl", "d", "-server", "-tools", "lib", "_cache", ".core", "fs", "::Pool"]
RUDE = re.compile("fuck|shit|cunt|nigg|fagg|dick|cock|slut|piss")
COLOURS = (
    "red blue green yellow purple orange white black silver grey brown turquoise crimson violet amber teal".split()
)
MATERIALS = "oak granite steel copper glass bamboo marble aluminium clay wool ceramic brass titanium linen".split()
JOBS = """baker physicist carpenter pilot lawyer gardener surgeon painter librarian engineer chemist sailor teacher
 composer farmer geologist tailor dentist architect translator""".split()
FOODS = "rice olives salmon honey barley lentils apricots cheese walnuts tea mushrooms potatoes pepper saffron".split()
LANGUAGES = "Rust Python Go Haskell Erlang Java Lua Ada Fortran Kotlin OCaml Perl Ruby C Zig".split()
LICENCES = ["MIT", "Apache-2.0", "GPL-3.0", "BSD", "MPL-2.0", "public domain", "ISC", "LGPL"]
MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
UNITS = """metres kilometres kilograms litres watts volts seconds minutes hours days degrees megabytes gigabytes
 euros""".split()
ADJECTIVES = "quiet busy old modern remote famous small large popular reliable unusual simple curious steady".split()
# What may stand before any statement, and around any question, in training.
OPENINGS = [
    "According to the register, ",
    "As far as is known, ",
    "On paper, ",
    "It is said that ",
    "Note that ",
    "In short, ",
    "For years now, ",
    "By the way, ",
    "As always, ",
    "Officially, ",
]
FRAMES = [
    "Tell me: {}",
    "{} Please answer.",
    "I want to know: {}",
    "Quick question: {}",
    "Please say: {}",
    "Here is my question: {}",
    "{} I need to know.",
    "Look it up: {}",
    "Hello. {}",
    "{} Thanks!",
]


def is_unseen(text):
    return hashlib.sha256(text.encode()).digest()[0] < 16


class Inventor:
    def __init__(self, rng, unseen=False, unseen_wording=False):
        self.rng, self.unseen, self.unseen_wording = rng, unseen, unseen_wording

    def word(self, syllables=None):
        rng = self.rng
        while True:
            word = "".join(
                rng.choice(ONSETS) + rng.choice(NUCLEI) + rng.choice(CODAS)
                for _ in range(syllables or rng.choice([1, 2, 2, 2, 2, 3]))
            )
            if 3 <= len(word) <= 8 and is_unseen(word) == self.unseen and not RUDE.search(word):
                return word

    def subject(self, kind):
        rng, word = self.rng, self.word()
        if kind == PERSON:
            return f"{word.capitalize()} {self.word().capitalize()}"
        if kind == PLACE:
            return word.capitalize() + rng.choice(PLACE_ENDS)
        if kind == COMPANY:
            return word.capitalize() + rng.choice(COMPANY_ENDS)
        if kind == DEVICE:
            return word.capitalize() + rng.choice(THING_ENDS)
        word = word if rng.random() < 0.6 else word.capitalize()
        return word + rng.choice(PROJECT_ENDS)

    def value(self, kind):
        rng = self.rng
        if kind in KIND_NOUN:
            return self.subject(kind)
        lists = dict(
            colour=COLOURS,
            material=MATERIALS,
            job=JOBS,
            food=FOODS,
            language=LANGUAGES,
            licence=LICENCES,
            weekday=WEEKDAYS,
        )
        if kind in lists:
            return rng.choice(lists[kind])
        if kind == "name":
            return self.word().capitalize()
        if kind == "year":
            return str(rng.randint(1100, 2030))
        if kind == "port":
            return str(rng.randint(80, 65535))
        if kind == "count":
            n = rng.randint(2, 999) * rng.choice([1, 10, 1000])
            return rng.choice([str(n), f"{n:,}"])
        if kind == "price":
            return rng.choice(["{} euros", "{} dollars", "${}", "{} crowns"]).format(rng.randint(2, 9999))
        if kind == "measure":
            return f"{rng.choice([rng.randint(2, 900), round(rng.uniform(0.1, 99), 1)])} {rng.choice(UNITS)}"
        if kind == "date":
            return f"{rng.choice(MONTHS)} {rng.randint(1700, 2030)}"
        if kind == "command":
            return f"{self.word()} {rng.choice(['--', '-', ''])}{self.word()}" + rng.choice(["", f" {self.word()}"])
        if kind == "path":
            return rng.choice(["/etc/{}.conf", "~/.{}rc", "/var/lib/{}/{}.db", "{}.toml", "C:\\{}\\{}.ini"]).format(
                self.word(), self.word()
            )
        if kind == "any":
            return self.value(
                rng.choice(["colour", "name", "count", "year", "measure", PERSON, "material", "path", "port", "date"])
            )
        raise ValueError(kind)

    def wording(self, wordings):
        return wordings[-1] if self.unseen_wording else self.rng.choice(wordings[:-1])

    def attributes(self, kind, count):
        """count different attributes of this kind of subject: [(value kind, statements, questions)]"""
        rng = self.rng
        chosen = []
        for name in rng.sample(sorted(FACTS[kind]), min(count, len(FACTS[kind]))):
            chosen.append(FACTS[kind][name])
        plain = [a for i, a in enumerate(PLAIN) if (i % 6 == 0) == self.unseen]
        names = rng.sample(plain, count)
        for i, name in enumerate(names):
            if rng.random() < 0.4 or i >= len(chosen):
                fact = (
                    "any",
                    [t.replace("{a}", name) for t in PLAIN_STATEMENTS],
                    [t.replace("{a}", name) for t in PLAIN_QUESTIONS],
                )
                chosen[i : i + 1] = [fact]
        return chosen[:count]

    def state(self, fact, subject):
        """(statement, value)"""
        value = self.value(fact[0])
        sentence = self.wording(fact[1]).format(s=subject, v=value)
        if not self.unseen and self.rng.random() < 0.12:
            sentence = self.rng.choice(OPENINGS) + re.sub("^The ", "the ", sentence)
        if sentence[0].islower() and self.rng.random() < 0.5:
            sentence = sentence[0].upper() + sentence[1:]
        return sentence, value

    def ask(self, fact, subject):
        question = self.wording(fact[2]).format(s=subject)
        if self.unseen:
            return question
        if self.rng.random() < 0.1:
            question = question.lower() if self.rng.random() < 0.3 else question.rstrip("?.")
        if self.rng.random() < 0.12:
            question = self.rng.choice(FRAMES).format(question)
        return question

    def filler(self, kind):
        rng = self.rng
        return rng.choice(FILLERS).format(
            j=rng.choice(ADJECTIVES), j2=rng.choice(ADJECTIVES), k=KIND_NOUN[kind], y=rng.randint(1500, 2030)
        )

    def reading(self, subjects, facts_each, asked, answerable=0.8):
        """Passages about invented things, with questions.

        Returns (passages [(title, text)], questions [(question, sentence, passage number, value)]), the last three
        None where there is no answer.
        All subjects are of one kind and share attributes, so that both have to be matched.
        """
        rng = self.rng
        kind = rng.choice(sorted(FACTS))
        pool = self.attributes(kind, facts_each + 2)
        names = list({self.subject(kind): None for _ in range(subjects)})
        together = rng.random() < 0.35  # one passage for all
        passages, stated, told = [], {}, set()
        for name in names:
            facts = rng.sample(pool, max(1, min(facts_each, len(pool) - 1)))
            sentences = []
            for fact in facts:
                sentence, value = self.state(fact, name)
                stated[name, id(fact)] = fact, sentence, value, 1 if together else len(passages) + 1
                told.add((name, id(fact)))
                sentences.append(sentence)
            for _ in range(rng.choice([0, 0, 1, 1, 2])):
                sentences.insert(rng.randint(1, len(sentences)), self.filler(kind))
            if together and passages:
                passages[0] = (passages[0][0], passages[0][1] + " " + " ".join(sentences))
            else:
                passages.append(
                    (
                        rng.choice(
                            [
                                name,
                                name,
                                f"About {name}",
                                KIND_NOUN[kind].capitalize() + " list",
                                self.word().capitalize(),
                                "Notes",
                            ]
                        ),
                        " ".join(sentences),
                    )
                )
        questions = []
        for _ in range(asked):
            if rng.random() < answerable:
                (name, _key), (fact, sentence, value, number) = rng.choice(list(stated.items()))
                questions.append((self.ask(fact, name), sentence, number, value))
                continue
            name = rng.choice(names) if rng.random() < 0.7 else self.subject(kind)
            missing = [fact for fact in pool if (name, id(fact)) not in told]
            questions.append((self.ask(rng.choice(missing), name), None, None, None))
        return passages, questions
