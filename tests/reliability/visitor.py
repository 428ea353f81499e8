"""A visitor of a page who speaks raw HTTP: uploads, asks, listens, cancels, hangs up.

In: the page's address and bodies as they shall go over the wire, NaN and half characters included. Out: status codes and the lines of the
answers. It knows nothing about what honest clients do.
"""

import json
from uuid import uuid4

import httpx

API = "/gradio_api"
SMALL = {"prompt": "a red ball rolls to the left over snow", "steps": 1, "seed": 0, "sampler": "lcm", "frames": 8, "size": "128x128"}
SMALL |= {"role": "student", "model": "toybox"}


class Visitor:
    """One tab of a browser, or one program."""

    def __init__(self, url):
        self.http = httpx.Client(base_url=url, timeout=120)
        self.session = uuid4().hex
        config = self.http.get("/config").json()
        self.events = config["dependencies"]
        self.index = {event["api_name"]: event["id"] for event in self.events if isinstance(event["api_name"], str)}
        self.parameters = self.http.get(f"{API}/info").json()["named_endpoints"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.close()

    def upload(self, path, name=None):
        """The file as an input of the API."""
        with open(path, "rb") as file:
            found = self.http.post(f"{API}/upload", files={"files": (name or path.name, file)})
        found.raise_for_status()
        return {"path": found.json()[0], "meta": {"_type": "gradio.FileData"}, "orig_name": name or path.name}

    def data(self, name, **values):
        """The arguments of an endpoint as a list: its defaults, and `values`."""
        rows = self.parameters[f"/{name}"]["parameters"]
        return [values.get(row["parameter_name"], row.get("parameter_default")) for row in rows]

    def call(self, name, **values):
        """(event, data) in the end: "complete" and the outputs, or "error" and what was said."""
        asked = self.post(f"{API}/call/{name}", json.dumps({"data": self.data(name, **values)}))
        if asked.status_code != 200:
            return str(asked.status_code), asked.text
        return self.result(name, asked.json()["event_id"])

    def post(self, path, content):
        return self.http.post(path, content=content, headers={"content-type": "application/json"})

    def result(self, name, event_id):
        event = None
        with self.http.stream("GET", f"{API}/call/{name}/{event_id}") as answer:
            for line in answer.iter_lines():
                key, _, value = line.partition(": ")
                if key == "event":
                    event = value
                elif key == "data" and event in ("complete", "error"):
                    return event, json.loads(value)
        return "lost", None

    def join(self, name, session=None, **values):
        """As the page itself asks: the answer of the queue."""
        body = {"data": self.data(name, **values), "fn_index": self.index[name], "session_hash": session or self.session}
        return self.post(f"{API}/queue/join", json.dumps(body))

    def messages(self, session=None):
        """A generator of what a session hears; closing it hangs up."""
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": session or self.session}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line[6:])

    def cancel(self, name, event_id, session=None):
        body = {"session_hash": session or self.session, "fn_index": self.index[name], "event_id": event_id}
        return self.http.post(f"{API}/cancel", json=body)
