"""Keeps the requests that are to succeed to what no schema can say: what this server serves, and what fits together.

Requests that are to be refused stay as they are.
"""

import copy
import json
import os
import urllib.request

import schemathesis
from schemathesis.generation import GenerationMode

ADDRESS = os.environ["HEARTH_ADDRESS"]
CHAT, EMBEDDING = "hearth-chat", "hearth-embed"
VOCABULARY = 4000


def uploaded_file():
    """The id of a file of its own, which no other request deletes."""
    form = ('--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
            '--b\r\nContent-Disposition: form-data; name="file"; filename="a.md"\r\n\r\n# A file\n\nSome text.\r\n--b--\r\n')
    request = urllib.request.Request(ADDRESS + "/v1/files", form.encode(), {"content-type": "multipart/form-data; boundary=b"})
    return json.load(urllib.request.urlopen(request))["id"]


def ids_in_vocabulary(value):
    """Token ids of the served models."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return int(value) % VOCABULARY
    # Short enough for the context.
    return [ids_in_vocabulary(item) for item in value[:100]] if isinstance(value, list) else value


def shortened(value):
    """What fits into the context of a small model: a few short parts."""
    if isinstance(value, str):
        return value[:100]
    return [shortened(item) for item in value[:3]] if isinstance(value, list) else value


def fit_message(message):
    content = shortened(message.get("content"))
    for part in content if isinstance(content, list) else []:
        for name in ("text", "refusal"):
            if name in part:
                part[name] = shortened(part[name])
    return {name: value for name, value in message.items() if name in ("role", "name", "tool_call_id")} | {"content": content}


def fit_body(body, path):
    if "rerank" in path:
        # None is served: 404.
        body.pop("model", None)
    elif body.get("model") is not None:
        body["model"] = EMBEDDING if "embeddings" in path else CHAT
    # As many as there is time for.
    if isinstance(body.get("n"), (int, float)) and body["n"] > 4:
        body["n"] = 4
    if body.get("dimensions"):
        body["dimensions"] = int(body["dimensions"]) % 32 + 1
    if path.startswith("/api/v1/chat"):
        body["messages"][-1]["role"] = "user"
        for message in body["messages"]:
            # What is blank to a regular expression and what is to Unicode differ.
            message["content"] = message["content"].strip() or "a"
    if path in ("/generate", "/stream"):
        body.pop("n", None)
    # A prompt has tokens.
    if "prompt" in body:
        prompt = body["prompt"]
        body["prompt"] = [one or "a" for one in prompt] if isinstance(prompt, list) else prompt or "a"
    for name in ("tokens", "content", "stop_token_ids", "input", "prompt"):
        if name in body:
            body[name] = ids_in_vocabulary(body[name])
    if isinstance(body.get("logit_bias"), dict):
        body["logit_bias"] = {str(int(token) % VOCABULARY): bias for token, bias in body["logit_bias"].items()}
    # Expressions that compile, and schemas that can be enforced.
    for name in ("guided_regex", "grammar", "structured_outputs", "json_schema", "guided_json", "response_format"):
        body.pop(name, None)
    if isinstance(body.get("messages"), list):
        body["messages"] = [fit_message(message) for message in body["messages"][-4:]]
    if body.get("tools"):
        body["tools"] = [{"type": "function", "function": {"name": f"tool_{number}"}} for number in range(len(body["tools"][:3]))]
    if isinstance(body.get("tool_choice"), dict):
        body["tool_choice"]["function"]["name"] = "tool_0"
    # Files that are there.
    if body.get("file_ids"):
        body["file_ids"] = [uploaded_file()]
    for file in body.get("files") or []:
        file["file_id"] = uploaded_file()
    if "file_id" in body:
        body["file_id"] = uploaded_file()
    body.pop("webhook_url", None)
    # No more than `max_tokens`.
    body.pop("min_tokens", None)


@schemathesis.hook
def filter_case(context, case):
    # The fields of a form are text: that one was a number before it was sent is no mistake that a server could see.
    is_form = case.media_type == "multipart/form-data" and isinstance(case.body, dict)
    return not (is_form and any(value is None or isinstance(value, (bool, int, float)) for value in case.body.values()))


@schemathesis.hook
def before_call(context, case, kwargs):
    # A form has nothing to fit, and one that is changed is judged again, with its file's bytes for a string.
    if case.media_type == "multipart/form-data":
        return
    # The generator may hand out the same object again.
    case.body = copy.deepcopy(case.body)
    # A deadline that nothing can keep is kept: 504.
    if isinstance(case.body, dict) and isinstance(case.body.get("timeout"), (int, float)) and 0 < case.body["timeout"] < 30:
        case.body["timeout"] = 30
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    if isinstance(case.body, dict):
        fit_body(case.body, case.path)
    # A vector store may have no name; its path needs one.
    if case.path_parameters and case.path_parameters.get("name") == "":
        case.path_parameters["name"] = "default"
    if case.path == "/v1/usage" and case.query:
        for name, moment in (("from", "2020-01-01"), ("to", "2100-01-01")):
            if name in case.query:
                case.query[name] = moment
