"""A server on this machine, which stands for those that publish weights and data."""

import http.server
import threading


class Server:
  """Answers with `files`: by path, bytes, a status, or (status, headers, bytes)."""

  def __init__(self):
    self.files, self.seen = {}, []
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        outer.seen.append((self.path, dict(self.headers)))
        answer = outer.files.get(self.path, 404)
        answer = (answer, {}, b"") if isinstance(answer, int) else answer
        status, headers, body = (200, {}, answer) if isinstance(answer, bytes) else answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
          self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

      def log_message(self, *arguments):
        pass

    self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self.server.server_port}"
    threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

  def close(self):
    self.server.shutdown()
    self.server.server_close()

  def paths(self):
    """Paths that were asked for, since the last call."""
    paths, self.seen = [path for path, _ in self.seen], []
    return paths
