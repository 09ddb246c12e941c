"""SGLang reads at import whether it runs on a CPU."""

import os

os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
