"""Train an adapter bundle from labelled requests, and judge it. Builds on `batch`; `batch` knows nothing of
it.
"""

import logging
import os

# Read once, when the libraries are first imported, so they are set before anything else is.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "true")  # MLflow tells its makers of its use
if os.environ.get("BATCH_ROUTE_ONLINE") != "1":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
# torch's threads and bitsandbytes' spin while they wait, each on the cores that the other needs: on two busy
# cores a training step took 4.8 s so, and 1.9 s with threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# bitsandbytes looks for a faster kernel on a hub and warns that there is none, which no user here can or need
# mend.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
