"""The batch interface of providers end to end: requests are handed in as files, waited for, and their replies put into
the cache, at about half the price of asking at once.

What was handed in stands in a file from before the provider is told of it, so that a run that was cut off waits for the
same batches, and hands nothing in twice.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx

from lmlab.endpoints.client.batch import collect_batch, write_batch
from lmlab.endpoints.client.cache import ReplyCache
from lmlab.endpoints.client.transport import address, asked_wait_s, credentials
from lmlab.endpoints.endpoint import Endpoint
from lmlab.endpoints.protocol import ChatRequest
from lmlab.endpoints.reading import error_message, error_of
from lmlab.errors import LmlabError, UserError
from lmlab.files import json_value, read_jsonl, read_mapping, sha256_file, write_json
from lmlab.words import counted

_log = logging.getLogger(__name__)
MOST_REQUESTS, MOST_BYTES = 50_000, 190_000_000  # of a batch, a little below OpenAI's limits
_ENDED = ("completed", "failed", "expired", "cancelled")
_IN_VAIN = ("failed", "expired", "cancelled")
_URL = "/v1/chat/completions"
_WINDOW = "24h"
_NAMED = 5  # batches in a message
_LINE_BYTES = 200  # of a line of a batch around the body of a request
_MARK = "lmlab_input"  # in the metadata of a batch: the hash of its file, by which it is found again


class BatchJobs:
    """Batches of one set of requests.

    Arguments:
        folder: for the files that are handed in and come back, and `batches.json`.
        cache: of the replies.
        most, most_bytes: requests of a batch, and bytes of its file.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        folder: str | Path,
        cache: str | Path,
        most: int = MOST_REQUESTS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.endpoint, self.folder, self.cache = endpoint, Path(folder), Path(cache)
        self.most, self.most_bytes = most, most_bytes
        headers, query, self._secrets = credentials(endpoint)
        self._http = httpx.Client(base_url=address(endpoint), headers=headers, params=query, timeout=endpoint.timeout_s)
        self._state = self.folder / "batches.json"
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> BatchJobs:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def run(
        self,
        requests: Iterable[ChatRequest],
        poll_s: float = 60.0,
        wait: bool = True,
        tell: Callable[[str], None] = print,
    ) -> Counter[str]:
        """Hand in what has no reply, wait, and put the replies into the cache. A run that was cut off is finished
        first: what it has asked is collected, whether it is still asked or not, and then what is new is handed in.

        Arguments:
            requests: what is asked; they are gone through more than once, and no more than a batch of them are in
                memory.
            poll_s: seconds between two looks.
            wait: until all batches have ended; else look once.
            tell: is told of the states of batches, when they change.

        Returns:
            replies by status; `under_way` counts batches that have not ended.

        Raises:
            LmlabError: the provider refuses a batch.
            UserError: batches of another model are under way.
        """
        resumed = self._known()
        batches = resumed or self._hand_in(requests)
        counts: Counter[str] = Counter()
        told: dict[str, str] = {}
        while True:
            refused: list[str] = []
            for batch in list(batches):
                if not batch.get("collected") and (why := self._look(batch, counts, batches)):
                    refused.append(f"{batch['id']}: {why}")
                    continue
                if told.get(batch["input"]) != (line := _told(batch)):
                    told[batch["input"]] = line
                    tell(line)
            if refused:  # only now, so that what the others brought is kept, and one run tells of all that were refused
                raise LmlabError(
                    f"The provider refuses {counted(len(refused), 'batches')}: {'; '.join(refused[:_NAMED])}",
                    "Change the requests, or wait if it is a limit that passes, and try again.",
                )
            left = sum(not batch.get("collected") for batch in batches)
            if not left or not wait:
                break
            time.sleep(poll_s)
        if left:
            counts["under_way"] = left
            return counts
        handed_in = {key for batch in resumed for key in self._asked(batch)}
        self._state.unlink(missing_ok=True)
        new = _Filtered(requests, lambda each: self.endpoint.shaped(each).key(self.endpoint.model) not in handed_in)
        return counts + self.run(new, poll_s, wait, tell) if resumed and any(True for _ in new) else counts

    def _asked(self, batch: dict[str, Any]) -> dict[str, ChatRequest]:
        """The requests of a batch by their keys, with all that reading replies needs."""
        rows = read_jsonl(self.folder / batch["input"])
        return {row["custom_id"]: ChatRequest(tuple(row["body"]["messages"])) for row in rows}

    def _known(self) -> list[dict[str, Any]]:
        """The batches of a run that was cut off; what was not yet handed in is handed in now."""
        if not self._state.exists():
            return []
        state = read_mapping(self._state)
        if state["model"] != self.endpoint.model:
            raise UserError(
                f"Batches of the model '{state['model']}' are under way in '{self.folder}'.",
                "Collect them with the command that handed them in, or name another --out.",
            )
        batches: list[dict[str, Any]] = state["batches"]
        for batch in batches:
            if batch.get("id") is None:
                self._submit(batch, batches)
        return batches

    def _hand_in(self, requests: Iterable[ChatRequest]) -> list[dict[str, Any]]:
        missing = self._missing(requests)
        batches: list[dict[str, Any]] = []
        for part in self._parts(missing):
            path = self.folder / f"input-{len(batches):03d}.jsonl"
            write_batch(path, self.endpoint.model, part)
            batches.append({"input": path.name, "mark": sha256_file(path), "requests": len(part), "id": None})
        if batches:
            self._keep(batches)
        for batch in batches:
            self._submit(batch, batches)
        return batches

    def _parts(self, requests: Iterable[ChatRequest]) -> Iterator[list[ChatRequest]]:
        part, size = list[ChatRequest](), 0
        for request in requests:
            more = len(json.dumps(request.body(self.endpoint.model))) + _LINE_BYTES
            if part and (len(part) == self.most or size + more > self.most_bytes):
                yield part
                part, size = [], 0
            part.append(request)
            size += more
        if part:
            yield part

    def _missing(self, requests: Iterable[ChatRequest]) -> Iterator[ChatRequest]:
        """Requests without a reply, equal ones once."""
        kept, seen = ReplyCache(self.cache), set[str]()
        try:
            for request in map(self.endpoint.shaped, requests):
                key = request.key(self.endpoint.model)
                if key not in seen and kept.get(key) is None:
                    seen.add(key)
                    yield request
        finally:
            kept.close()

    def _submit(self, batch: dict[str, Any], batches: list[dict[str, Any]]) -> None:
        """Hand a batch in, unless it has been: the answer to that may have been lost."""
        marked = [each for each in self._listed() if (each.get("metadata") or {}).get(_MARK) == batch["mark"]]
        found = next((each for each in marked if each.get("status") not in _IN_VAIN), None)
        if found is None:
            path = self.folder / batch["input"]
            sent = {"file": (path.name, path.read_bytes(), "application/jsonl")}
            uploaded = self._ask("POST", "files", files=sent, data={"purpose": "batch"})
            body = {"input_file_id": uploaded["id"], "endpoint": _URL, "completion_window": _WINDOW}
            found = self._ask("POST", "batches", json=body | {"metadata": {_MARK: batch["mark"]}})
        batch |= {"id": found["id"], "status": found.get("status", "validating")}
        self._keep(batches)

    def _listed(self) -> list[dict[str, Any]]:
        return list(self._ask("GET", "batches", params={"limit": 100}).get("data") or ())

    def _look(self, batch: dict[str, Any], counts: Counter[str], batches: list[dict[str, Any]]) -> str:
        """Ask for the state of a batch, and collect it if it has ended. One that the provider refuses is taken from the
        others, which the next run collects before it hands in again what this one asked; the result says why.
        """
        now = self._ask("GET", f"batches/{batch['id']}")
        done = now.get("request_counts") or {}
        batch |= {"status": now["status"], "done": done.get("completed", 0), "failed": done.get("failed", 0)}
        if now["status"] not in _ENDED:
            return ""
        if now["status"] == "failed":
            errors = (now.get("errors") or {}).get("data") or ["no reason given"]
            batches.remove(batch)
            if batches:
                self._keep(batches)
            else:
                self._state.unlink(missing_ok=True)
            return error_message(errors[0], self._secrets)
        asked = self._asked(batch)
        for kind in ("output_file_id", "error_file_id"):
            if now.get(kind):
                path = self.folder / batch["input"].replace("input", kind.partition("_")[0])
                path.write_bytes(self._send("GET", f"files/{now[kind]}/content").content)
                counts += collect_batch(path, self.endpoint.model, asked, self.cache, self.endpoint.price)
        batch["collected"] = True
        self._keep(batches)
        return ""

    def _keep(self, batches: list[dict[str, Any]]) -> None:
        write_json(self._state, {"model": self.endpoint.model, "batches": batches})

    def _ask(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        found = json_value(self._send(method, path, **sent).content)
        if not isinstance(found, dict):
            raise LmlabError(f"The endpoint answers {path} with something that is no object.")
        return found

    def _send(self, method: str, path: str, **sent: Any) -> httpx.Response:
        """One request; again after a passing fault if it changes nothing."""
        attempts = self.endpoint.max_retries + 1 if method == "GET" else 1
        for attempt in range(attempts):
            wait = min(60.0, 2.0**attempt)
            try:
                response = self._http.request(method, path, **sent)
            except httpx.TransportError as error:
                reason = error_message(str(error) or type(error).__name__, self._secrets)
            else:
                if response.is_success:
                    return response
                reason = self._refused(response, path)
                asked = asked_wait_s(response.headers)
                wait = max(wait, asked if asked <= self.endpoint.longest_wait_s else 0.0)
            _log.info("%s %s: %s", method, path, reason)
            if attempt + 1 < attempts:
                time.sleep(wait)
        raise LmlabError(f"The endpoint cannot be asked ({path}): {reason}", "Run the same command again.")

    def _refused(self, response: httpx.Response, path: str) -> str:
        """The reason of a fault that may pass.

        Raises:
            UserError: it will not.
        """
        try:
            body: Any = response.json()
        except ValueError:
            body = response.text
        said = f"status {response.status_code}: {error_message(error_of(body), self._secrets)}"
        if response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
            return said
        raise UserError(f"The endpoint refuses {path}: {said}", "See whether it has a batch interface, and the key.")


class _Filtered:
    """Those of some requests that a condition holds for, as often as they are gone through."""

    def __init__(self, requests: Iterable[ChatRequest], wanted: Callable[[ChatRequest], bool]) -> None:
        self._requests, self._wanted = requests, wanted

    def __iter__(self) -> Iterator[ChatRequest]:
        return filter(self._wanted, self._requests)


def _told(batch: dict[str, Any]) -> str:
    done, failed = batch.get("done", 0), batch.get("failed", 0)
    return f"batch {batch['id']}: {batch.get('status')}, {done:,} of {batch['requests']:,} done, {failed:,} failed"
