"""Serve on this machine while a test runs."""

import contextlib
import http.server
import threading


class QuietHandler(http.server.BaseHTTPRequestHandler):
    """A handler that says nothing of what it is asked."""

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve(handler, **attributes):
    """Serve with a handler class, whose `self.server` has the attributes; the address is what the context gives."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    vars(server).update(attributes)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
