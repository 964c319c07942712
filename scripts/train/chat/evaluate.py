"""Ask the chat model through Hearth itself, greedily, what it must be able to do, and write the figures.

Synthetic reading takes names and attributes that training never drew, and once more with wordings of statements and
questions that it never drew either; headings and unanswerable questions
come from held-out documents. An answer is right if it holds the value, or the sentence that was asked for.

usage: evaluate.py MODEL.gguf [--hearth target/release/hearth | --url http://HOST:PORT] [--data target/train]
       [--count 200] [--out FILE.json] [--checkpoint FILE.pt, to compare logits] [--show N]
"""

import argparse
import collections
import concurrent.futures
import json
import pathlib
import random
import re
import subprocess
import time
import urllib.error
import urllib.request

from tokenizers import Tokenizer

import chat_format
from dialogues import CHAT, Source
from invented import Inventor
from questions import terms

SEED = 20_000


def post(url, path, body):
    request = urllib.request.Request(
        url + path, json.dumps({"model": "chat"} | body).encode(), {"content-type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request, timeout=600))


def prompt(passages, question):
    return [
        {"role": "system", "content": chat_format.RAG_SYSTEM},
        {"role": "user", "content": chat_format.rag_prompt(passages, question)},
    ]


def synthetic(count):
    """Answerable and unanswerable questions about invented things, and answerable ones in unseen wordings."""
    cases = []
    for unseen_wording, wanted in ((False, {True: count, False: count // 2}), (True, {True: count})):
        rng = random.Random(SEED)
        inventor = Inventor(rng, unseen=True, unseen_wording=unseen_wording)
        while sum(wanted.values()):
            passages, questions = inventor.reading(rng.randint(1, 4), rng.randint(1, 4), 1, answerable=0.6)
            question, sentence, number, value = questions[0]
            if not wanted.get(value is not None):
                continue
            wanted[value is not None] -= 1
            group = "synthetic, unseen wordings" if unseen_wording else "synthetic" if value else "unanswerable"
            case = dict(group=group, value=value, sentence=sentence, number=number)
            cases.append(case | dict(messages=prompt(passages, question)))
    return cases


def headings(source, count):
    """Questions about headings of held-out documents among other passages; and with the passage left out."""
    rng = source.rng
    cases, wanted = (
        [],
        collections.Counter(
            {"headings": count, "headings, document titles only": count // 2, "unanswerable": count // 2}
        ),
    )
    while sum(wanted.values()):
        passage = rng.choice(source.passages)
        found = source.questioner.about_heading(passage, held_out_wording=rng.random() < 0.25)
        near = [p for p in source.by_document[passage["document"]] if p["heading"] != passage["heading"]]
        if not found or len(near) < 2:
            continue
        question, sentence = found
        others = rng.sample(near, 2) + [rng.choice(source.passages)]
        group = rng.choice(list(wanted.elements()))
        if group == "unanswerable":
            shown = others
            known = set(terms(" ".join(f"{p['heading']} {p['text']}" for p in shown)))
            asked = set(terms(question))
            if len(asked & known) > 0.5 * len(asked):
                continue
        else:
            shown = others[: rng.randint(1, 3)] + [passage]
            if group != "headings":
                key = set(terms(passage["heading"]))
                if (
                    not key
                    or not key <= set(terms(passage["text"]))
                    or any(key <= set(terms(p["text"])) for p in shown[:-1])
                ):
                    continue
        rng.shuffle(shown)
        titled = [
            (
                p["title"]
                if group == "headings, document titles only" or p["title"] == p["heading"]
                else f"{p['title']}: {p['heading']}",
                p["text"],
            )
            for p in shown
        ]
        number = shown.index(passage) + 1 if passage in shown else None
        cases.append(dict(group=group, messages=prompt(titled, question), value=None, sentence=sentence, number=number))
        wanted[group] -= 1
    return cases


def talk(source, count):
    """Greetings, and questions without any context: to see that they end."""
    rng = source.rng
    cases = []
    for asks, answers in CHAT:
        cases += [
            dict(group="talk", messages=[{"role": "user", "content": ask.capitalize()}], answers=answers)
            for ask in asks[:3]
        ]
    while len(cases) < count:
        passage = rng.choice(source.passages)
        text = rng.choice(
            [
                passage["heading"],
                passage["text"],
                passage["text"][: rng.randint(5, 300)],
                f"Summarize this:\n{passage['text']}",
                f"Write a story about {passage['heading']}",
                "".join(rng.choice("abcdefgh 123.,") for _ in range(40)),
            ]
        )
        cases.append(dict(group="open", messages=[{"role": "user", "content": text}]))
    return cases


def plain(text):
    return re.sub(r"\W+", " ", text.lower()).strip()


def loops(text):
    """A run of words said three times in a row, or one of eight words three times at all."""
    words = text.split()
    eights = collections.Counter(tuple(words[i : i + 8]) for i in range(len(words) - 7))
    return bool(re.search(r"(\b.{2,60}?)\1\1", text)) and len(words) > 20 or max(eights.values(), default=0) >= 3


def judge(case, answer):
    said = plain(re.sub(r"\s*\[\d\]", "", answer))
    says_nothing = plain(chat_format.NOT_IN_CONTEXT) in said or plain(chat_format.NO_CONTEXT) in said
    if case["group"] == "unanswerable":
        return says_nothing
    if case["group"] == "talk":
        return answer in case["answers"]
    if case["group"] == "open":
        return True
    wanted = plain(case["value"] or case["sentence"])
    return f" {wanted} " in f" {said} " or (not case["group"].startswith("synthetic") and len(said.split()) > 4 and said in wanted)


def logits_differ(url, options):
    """Largest difference of the log-probabilities of the likeliest next tokens, Hearth against the training code."""
    import torch

    from model import Config, Model

    checkpoint = torch.load(options.checkpoint)
    model = Model(Config(**checkpoint["config"]))
    model.load_state_dict(checkpoint["model"])
    tokenizer = Tokenizer.from_file(str(options.data / "chat/tokenizer.json"))
    asked = chat_format.rag_prompt([("Trees", "The oak is 12 metres high. The elm isn't.")], "How high is the oak?")
    text = f"<|user|>{asked}<|end|><|assistant|>The"
    ids = tokenizer.encode(text).ids
    assert post(url, "/tokenize", {"content": text, "parse_special": True})["tokens"] == ids, "tokens differ"
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([ids]))[0, -1], -1)
    answer = post(url, "/v1/completions", {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 5})
    top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    return max(abs(value - expected[tokenizer.encode(token).ids[0]].item()) for token, value in top.items())


def tokenization_differs(url, source, options):
    tokenizer = Tokenizer.from_file(str(options.data / "chat/tokenizer.json"))
    texts = [p["text"] for p in source.rng.sample(source.passages, 100)] + ["a\n\n  b\t 12.5%\n ", "Größe – 東京 🙂 x²"]
    return sum(post(url, "/tokenize", {"content": text})["tokens"] != tokenizer.encode(text).ids for text in texts)


def measure(url, options):
    tokenizer = Tokenizer.from_file(str(options.data / "chat/tokenizer.json"))
    source = Source(options.data, tokenizer, SEED, split="heldout")
    cases = synthetic(options.count) + headings(source, options.count) + talk(source, options.count)

    def ask(case):
        body = {"messages": case["messages"], "temperature": 0, "max_tokens": 200}
        choice = post(url, "/v1/chat/completions", body)["choices"][0]
        return case, choice["message"]["content"], choice["finish_reason"]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, cases))
    right, total, cited = collections.Counter(), collections.Counter(), []
    for case, answer, _ in answers:
        good = judge(case, answer)
        total[case["group"]] += 1
        right[case["group"]] += good
        if good and case.get("number"):
            cited.append(f"[{case['number']}]" in answer)
        if options.show > 0 and (not good or case["group"] == "open"):
            options.show -= 1
            print(
                f"--- {case['group']}\n{case['messages'][-1]['content']}\n>>> {answer}\n"
                f"(wanted: {case.get('sentence')} [{case.get('number')}])"
            )
    figures = {group: round(right[group] / total[group], 3) for group in total if group != "open"}
    figures |= {
        "right citations": round(sum(cited) / max(1, len(cited)), 3),
        "ended": round(sum(reason == "stop" for *_, reason in answers) / len(answers), 3),
        "repetition loops": sum(loops(answer) for _, answer, _ in answers),
        "prompts": len(answers),
        "texts tokenized otherwise": tokenization_differs(url, source, options),
    }
    if options.checkpoint:
        figures["largest difference of log-probabilities"] = round(logits_differ(url, options), 5)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--hearth", default="target/release/hearth")
    parser.add_argument("--url")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("target/train"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--checkpoint")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--show", type=int, default=0, help="print so many of the answers that were wrong or open")
    options = parser.parse_args()
    server = None
    if not options.url:
        command = [
            options.hearth,
            "serve",
            "-m",
            options.model,
            "--alias",
            "chat",
            "--offline",
            "--port",
            "0",
            "--threads",
            options.threads,
        ]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        options.url = server.stdout.readline().split()[-1]
    try:
        ready(options.url)
        figures = measure(options.url, options)
    finally:
        if server:
            server.terminate()
            server.wait()
    print(json.dumps(figures, indent=2))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


def ready(url):
    """Waits until the model is loaded."""
    while True:
        try:
            post(url, "/tokenize", {"content": ""})
            return
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main()
