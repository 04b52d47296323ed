"""Train an adapter bundle from labelled requests, and judge it. Builds on `batch`; `batch` knows nothing of it."""

import os

# The hub's libraries read these when they are first imported, so they are set before anything else is.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
if os.environ.get("BATCH_ROUTE_ONLINE") != "1":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
