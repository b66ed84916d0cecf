"""A stand-in for a model server: takes vLLM's arguments, answers every chat with "Yes", and has a child.

``--fail`` among the arguments ends it at once, as a server does that cannot load its model.
"""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.reply({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = {"role": "assistant", "content": "Yes"}
        choice = {"message": message, "finish_reason": "stop", "stop_reason": None}
        self.reply({"choices": [choice], "usage": {"completion_tokens": 3}, "model": body["model"]})

    def reply(self, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def main(arguments: list[str]) -> int:
    if "--fail" in arguments:
        print("no such architecture")
        return 3
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    port = int(arguments[arguments.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
