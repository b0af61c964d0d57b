"""Exit 0 if the gateway in this container is ready, else 1 with its reason. Nothing but the standard library.

http.client and not urllib: that one would ask a proxy of the environment for 127.0.0.1.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys


def main() -> int:
    """Ask /readyz, which never waits for the engine."""
    port = int(os.environ.get("ME5_PORT", "8080"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    if os.environ.get("ME5_TLS_CERT"):
        # The certificate is for another name than this one.
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=2, context=unverified)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        print(f"/readyz: {error!r}")
        return 1
    print(body)
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
