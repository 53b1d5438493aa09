"""Exit 0 when the service of this container answers /readyz with 200, else 1 with the reason: the image has no curl."""

import os
import sys
import urllib.error
import urllib.request

url = f"http://127.0.0.1:{os.environ.get('NATTRIBUTE_PORT', '8000')}/readyz"
try:
    with urllib.request.urlopen(url, timeout=4) as response:
        response.read()
except (urllib.error.URLError, OSError) as error:
    sys.exit(f"{url}: {error}")
