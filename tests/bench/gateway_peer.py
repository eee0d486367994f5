"""LiteLLM's proxy in an environment of its own, with what it has of what our gateway does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "peers" / "litellm"
VERSION = "1.106.2"
KEY = "sk-bench"
# Its tracing needs these, and does not ask for them itself.
_REQUIREMENTS = (
    f"litellm[proxy]=={VERSION}",
    "opentelemetry-api",
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp",
)

# Its own metering wants a PostgreSQL, which would cost it more than this: a callback that writes each usage into a
# file.
_METER = """
import json

from litellm.integrations.custom_logger import CustomLogger


class Meter(CustomLogger):
    def __init__(self):
        self.file = open("usage.jsonl", "a")

    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        usage = response_obj["usage"]
        line = {"model": kwargs["model"], "prompt": usage["prompt_tokens"], "completion": usage["completion_tokens"]}
        self.file.write(json.dumps(line) + "\\n")
        self.file.flush()


meter = Meter()
"""


def install() -> Path:
    """Makes the environment if it is not there and gives the program. Exits with pip's words if it cannot be made."""
    program = FOLDER / "bin" / "litellm"
    marker = FOLDER / f".installed-{VERSION}"
    if not marker.exists():
        print(f"installing litellm[proxy] {VERSION} into {FOLDER} (some minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
        pip = [str(FOLDER / "bin" / "python"), "-m", "pip", "install", "--quiet", *_REQUIREMENTS]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"litellm cannot be installed:\n{done.stderr[-2000:]}")
        marker.touch()
    return program


def start(folder: Path, *, port: int, upstream: int, otlp: int, core: int, log: Path) -> subprocess.Popen[bytes]:
    """Starts one worker with a key check, limits, metering and tracing."""
    program = install()
    (folder / "meter.py").write_text(_METER)
    config = {
        "model_list": [
            {
                "model_name": "llm",
                "litellm_params": {
                    "model": "openai/stub",
                    "api_base": f"http://127.0.0.1:{upstream}/v1",
                    "api_key": "none",
                    "rpm": 1_000_000_000,
                    "tpm": 1_000_000_000,
                },
            }
        ],
        "litellm_settings": {"callbacks": ["otel", "meter.meter"], "telemetry": False},
        "router_settings": {
            "routing_strategy": "simple-shuffle",
            "optional_pre_call_checks": ["enforce_model_rate_limits"],
        },
        "general_settings": {"master_key": KEY},
    }
    # JSON is YAML.
    (folder / "config.yaml").write_text(json.dumps(config))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "OTEL_EXPORTER": "otlp_grpc",
        "OTEL_ENDPOINT": f"http://127.0.0.1:{otlp}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{otlp}",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
    }
    command = ["taskset", "-c", str(core), str(program), "--config", "config.yaml"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
