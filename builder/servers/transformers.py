"""Serve safetensors with transformers' own generation: an OpenAI-compatible API on a Unix socket.

* One model, loaded at start, one answer at a time: what waits is served in turn. For many users there is vLLM.
* Chat and text completions, streamed or whole. What is asked for and cannot be done is refused, never passed over.
* A client that goes away ends its generation. Weights are read from safetensors alone; no code of a model is run.
* SIGTERM and SIGINT end the server.

``transformers serve`` is not used: it loads whatever model a request names, unloads on request, and refuses
``max_completion_tokens``, which today's clients send.

Source: OpenAI API reference, "Chat" and "Completions"; transformers 5.17, ``generation/streamers.py``.
"""

from __future__ import annotations

import json
import os
import signal
import socketserver
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))  # in a checkout

import serving
from serving import Fault, Request

THREADS = 2
MAX_BODY = 16 << 20
MAX_STOPS = 4
TAKEN = frozenset({
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed",
    "stop", "stream", "stream_options",
})  # fmt: skip
PASSED_OVER = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
})  # fmt: skip
"""Fields that have no effect on the text."""
NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,), "best_of": (1,), "logprobs": (False,), "top_logprobs": (0,), "echo": (False,), "suffix": ("",),
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "response_format": ({"type": "text"},),
    "tools": ([],), "tool_choice": ("none", "auto"), "modalities": (["text"],), "functions": ([],),
}  # fmt: skip
"""Fields of which only these values can be had; ``null`` always can."""


class BadRequest(Exception):
    """A request that cannot be answered: 400, or another status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for."""

    prompt: Any
    """Messages of a chat, or a text."""
    limit: int | None
    """Tokens to generate at most."""
    sampling: dict[str, float | int]
    """``temperature``, ``top_p`` and ``top_k`` where they are given."""
    seed: int | None
    stops: tuple[str, ...]
    stream: bool
    usage: bool
    """Whether a stream ends with the numbers of tokens."""

    @classmethod
    def of(cls, body: dict[str, Any], *, name: str, chat: bool) -> Wish:
        """Read a request's body.

        Raises:
            BadRequest: something in it cannot be had.
        """
        if body.get("model", name) != name:
            raise BadRequest(f"model: expected {name!r}, found {body['model']!r}", 404)
        for key, value in body.items():
            if value is None or key in TAKEN or key in PASSED_OVER or value in NEUTRAL.get(key, ()):
                continue
            raise BadRequest(f"{key}: not supported by this server, found {json.dumps(value)[:200]}")
        limit = _number(body, "max_completion_tokens", int, 1, 1 << 31) or _number(body, "max_tokens", int, 1, 1 << 31)
        ranges = (("temperature", float, 0, 2), ("top_p", float, 0, 1), ("top_k", int, 0, 1 << 31))
        found = {key: _number(body, key, kind, low, high) for key, kind, low, high in ranges}
        options = body.get("stream_options") or {}
        if not isinstance(options, dict):
            raise BadRequest("stream_options: expected an object")
        return cls(
            prompt=_messages(body.get("messages")) if chat else _text(body.get("prompt"), "prompt"),
            limit=limit,
            sampling={key: value for key, value in found.items() if value is not None},
            seed=_number(body, "seed", int, -(1 << 63), (1 << 63) - 1),
            stops=_stops(body.get("stop")),
            stream=body.get("stream") is True,
            usage=options.get("include_usage") is True,
        )


def _number(body: dict[str, Any], key: str, kind: type, low: float, high: float) -> Any:
    value = body.get(key)
    if value is None:
        return None
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and (kind is float or isinstance(value, int))
    if not fits or not low <= value <= high:
        raise BadRequest(f"{key}: expected a number from {low} to {high}, found {json.dumps(value)[:200]}")
    return kind(value)


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{key}: expected a text")
    return value


def _messages(value: object) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise BadRequest("messages: expected at least one")
    result = []
    for number, message in enumerate(value):
        at = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(f"{at}: expected a role and a content")
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                raise BadRequest(f"{at}.content: expected text alone")
            content = "".join(_text(part.get("text"), f"{at}.content") for part in content)
        result.append({"role": message["role"], "content": _text(content, f"{at}.content")})
    return result


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise BadRequest(f"stop: expected at most {MAX_STOPS} texts")
    return tuple(stops)


class Cutter:
    """Ends a text before the first of the ``stops``; holds back what may be the beginning of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.ended = False

    def add(self, piece: str) -> str:
        """Return what of the text so far can be given out now."""
        text = self._held + piece
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.ended = True
            self._held = ""
            return text[: min(found)]
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        begun = (size for size in range(min(longest, len(text)), 0, -1) if self._may_begin(text[-size:]))
        size = next(begun, 0)
        self._held = text[len(text) - size :]
        return text[: len(text) - size]

    def rest(self) -> str:
        """Return what is held back, when no more text comes."""
        rest, self._held = self._held, ""
        return rest

    def _may_begin(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)


@dataclass(slots=True)
class Answer:
    """A text being generated."""

    prompt_tokens: int
    completion_tokens: int = 0
    finish: str = "stop"
    """``stop`` or ``length``."""

    def usage(self) -> dict[str, int]:
        """The numbers of tokens as the API has them."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total
        }  # fmt: skip


class Model:
    """The model with its tokenizer; generates for one at a time."""

    def __init__(self, folder: Path, context: int | None) -> None:
        """Load what is in ``folder``.

        Raises:
            Fault: transformers cannot load it.
        """
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", THREADS)))
        given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **given)
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", device_map="cpu", use_safetensors=True, **given
            ).eval()
        except Exception as problem:
            raise Fault(f"model: {type(problem).__name__}: {problem}") from problem
        made_for = self._model.config.get_text_config().max_position_embeddings
        self.context = min(context or made_for, made_for)
        """Tokens of prompt and answer together."""
        self._turn = threading.Lock()

    def encode(self, prompt: list[dict[str, str]] | str) -> list[int]:
        """Return the tokens of a text, or of a chat put into the model's own template.

        Raises:
            BadRequest: the model has no template, or it does not take these messages.
        """
        if isinstance(prompt, str):
            return list(self._tokenizer(prompt)["input_ids"])
        if self._tokenizer.chat_template is None:
            raise BadRequest("messages: the model has no chat template; it completes text at /v1/completions")
        try:
            text = self._tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        except Exception as problem:
            raise BadRequest(f"messages: the model's chat template: {problem}") from problem
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def begin(self, wish: Wish) -> tuple[list[int], int, Answer]:
        """Return the prompt's tokens, how many to generate at most, and the answer to be filled.

        Raises:
            BadRequest: prompt and answer do not fit.
        """
        tokens = self.encode(wish.prompt)
        room = self.context - len(tokens)
        if not tokens or room < 1 or (wish.limit or 0) > room:
            asked = f" and {wish.limit} to generate" if wish.limit else ""
            raise BadRequest(f"expected 1 to {self.context - 1} tokens of {self.context}, found {len(tokens)}{asked}")
        return tokens, wish.limit or room, Answer(len(tokens))

    def pieces(self, tokens: list[int], limit: int, wish: Wish, answer: Answer) -> Iterator[str]:
        """Yield the text as it comes; closing the iterator ends the generation."""
        cutter = Cutter(wish.stops)
        cancelled = threading.Event()
        with self._turn:
            streamer = self._streamer(answer)
            worker = threading.Thread(target=self._generate, args=(tokens, limit, wish, streamer, cancelled))
            worker.start()
            try:
                for piece in streamer:
                    if text := cutter.add(piece):
                        yield text
                    if cutter.ended:
                        break
            finally:
                cancelled.set()
                worker.join()
        if streamer.problem is not None:
            raise streamer.problem
        answer.finish = "length" if answer.completion_tokens >= limit and not cutter.ended else "stop"
        if rest := cutter.rest():
            yield rest

    def _streamer(self, answer: Answer) -> Any:
        import transformers

        class Streamer(transformers.TextIteratorStreamer):  # type: ignore[misc]
            problem: Exception | None = None
            prompt = True

            def put(self, value: Any) -> None:
                if not self.prompt:
                    answer.completion_tokens += int(value.numel())
                self.prompt = False
                super().put(value)

        return Streamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)

    def _generate(self, tokens: list[int], limit: int, wish: Wish, streamer: Any, cancelled: threading.Event) -> None:
        import torch
        import transformers

        class Cancelled(transformers.StoppingCriteria):  # type: ignore[misc]
            def __call__(self, ids: Any, *_: Any, **__: Any) -> Any:
                return torch.full((ids.shape[0],), cancelled.is_set(), dtype=torch.bool)

        sampling: dict[str, Any] = dict(wish.sampling)
        if sampling.get("temperature") == 0:
            sampling = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        elif sampling:
            sampling["do_sample"] = True
        try:
            if wish.seed is not None:
                torch.manual_seed(wish.seed)
            ids = torch.tensor([tokens])
            criteria = transformers.StoppingCriteriaList([Cancelled()])
            with torch.inference_mode():
                self._model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=limit,
                    pad_token_id=self._tokenizer.pad_token_id or 0,
                    streamer=streamer,
                    stopping_criteria=criteria,
                    **sampling,
                )
        except Exception as problem:  # noqa: BLE001 - raised again where the answer is waited for
            streamer.problem = problem
            streamer.end()


class Handler(BaseHTTPRequestHandler):
    """One connection's requests, one after the other."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Say what is served."""
        about = {"id": self.server.name, "object": "model", "created": self.server.created, "owned_by": "intaglio"}
        if self.path == "/v1/models":
            self._answer(200, {"object": "list", "data": [{**about, "max_model_len": self.server.model.context}]})
        elif self.path == "/health":
            self._answer(200, {"status": "ok"})
        else:
            self._refuse(404, f"nothing at {self.path}")

    def do_POST(self) -> None:
        """Complete a chat or a text."""
        chat = self.path == "/v1/chat/completions"
        try:
            body = self._body()  # first, whatever is asked for: who is still sending would not hear the answer
            if not chat and self.path != "/v1/completions":
                raise BadRequest(f"nothing at {self.path}", 404)
            wish = Wish.of(body, name=self.server.name, chat=chat)
            tokens, limit, answer = self.server.model.begin(wish)
        except BadRequest as problem:
            self._refuse(problem.status, str(problem))
            return
        pieces = self.server.model.pieces(tokens, limit, wish, answer)
        reply = Reply(self.server.name, chat)
        if wish.stream:
            self._stream(reply, pieces, answer, wish)
            return
        try:
            text = "".join(pieces)
        except Exception as problem:  # noqa: BLE001 - the server goes on
            self._refuse(500, f"{type(problem).__name__}: {problem}")
            return
        self._answer(200, reply.whole(text, answer))

    def _body(self) -> dict[str, Any]:
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > MAX_BODY:
            self.close_connection = True
            raise BadRequest(f"expected a body with its length, at most {MAX_BODY} bytes", 413 if size else 411)
        try:
            body = json.loads(self.rfile.read(int(size)))
        except ValueError as problem:
            raise BadRequest(f"expected JSON: {problem}") from None
        if not isinstance(body, dict):
            raise BadRequest("expected a JSON object")
        return body

    def _stream(self, reply: Reply, pieces: Any, answer: Answer, wish: Wish) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            if reply.chat:
                self._event(reply.part("", role="assistant"))
            for piece in pieces:
                self._event(reply.part(piece))
            self._event(reply.part(None, finish=answer.finish))
            if wish.usage:
                self._event(reply.end(answer))
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except OSError:
            self.close_connection = True  # the client is gone
        except Exception as problem:  # noqa: BLE001 - the status has been sent; the stream says it instead
            self.close_connection = True
            self._event(_error(f"{type(problem).__name__}: {problem}"))
        finally:
            pieces.close()

    def _event(self, value: object) -> None:
        self._chunk(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, _error(message))

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value, ensure_ascii=False).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the client is gone

    def log_message(self, form: str, *values: object) -> None:
        """Log nothing: what people ask is theirs."""


@dataclass(frozen=True, slots=True)
class Reply:
    """How an answer is written: of a chat or of a text."""

    name: str
    chat: bool
    number: str = ""
    created: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}")
        object.__setattr__(self, "created", int(time.time()))

    def whole(self, text: str, answer: Answer) -> dict[str, Any]:
        """The answer in one piece."""
        content = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": answer.finish}
        return {**self._about("chat.completion"), "choices": [choice], "usage": answer.usage()}

    def part(self, text: str | None, *, role: str | None = None, finish: str | None = None) -> dict[str, Any]:
        """One piece of it, the beginning (``role``) or the end (``finish``)."""
        delta = {**({"role": role} if role else {}), **({} if text is None else {"content": text})}
        content: dict[str, Any] = {"delta": delta} if self.chat else {"text": text or ""}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
        return {**self._about("chat.completion.chunk"), "choices": [choice]}

    def end(self, answer: Answer) -> dict[str, Any]:
        """The numbers of tokens at the end of a stream."""
        return {**self._about("chat.completion.chunk"), "choices": [], "usage": answer.usage()}

    def _about(self, kind: str) -> dict[str, Any]:
        kind = kind if self.chat else "text_completion"
        return {"id": self.number, "object": kind, "created": self.created, "model": self.name}


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """The socket, and the model behind it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: str, name: str, model: Model) -> None:
        super().__init__(path, Handler)
        self.name = name
        self.model = model
        self.created = int(time.time())


def serve(request: Request) -> None:
    """Serve until told to end."""
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # inherited by all threads: only this one waits for them
    model = Model(request.folder, request.context)
    server = Server(request.socket, request.name, model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"serving {request.name}", file=sys.stderr, flush=True)
    signal.sigwait(ends)
    Path(request.socket).unlink(missing_ok=True)
    sys.stderr.flush()
    os._exit(0)  # whoever is being answered would keep the interpreter from ending


if __name__ == "__main__":
    sys.exit(serving.run(serve))
