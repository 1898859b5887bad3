"""Data, loss, trainer, evaluation and export."""

import os

# ONNX Runtime reports its use to its maker unless it finds this when it is imported.
os.putenv("ORT_DISABLE_TELEMETRY", "1")
