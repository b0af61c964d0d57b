"""Triton's backend "onnxruntime" in Python, for machines that have the server and not its ONNX Runtime backend.

Everything else is Triton's own: a production repository loads as it is. It runs in Triton's Python, so it imports
nothing of this project. Like the backend that it stands in for, it refuses a config that contradicts the graph.
Variables of the environment are for tests:

    TRITON_STANDIN_DELAY_MS      how much longer each execution takes
    TRITON_STANDIN_DELAY_FILE    the same, from a file that is looked at again while an execution waits
    TRITON_STANDIN_RUNS_FILE     gets a line when an execution begins: model, version, rows x width, requests
    TRITON_STANDIN_THREADS       goes before the config's intra_op_thread_count
"""

import json
import os
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

ONNX_TYPES = {
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
}


class TritonPythonModel:
    """One instance of a model: a session, and what the config and the environment say about it."""

    def initialize(self, args):
        """Open <model>/<version>/<default_model_filename>. Raises where the config is not the graph's."""
        config = json.loads(args["model_config"])
        path = (
            Path(args["model_repository"]) / args["model_version"] / (config["default_model_filename"] or "model.onnx")
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        threads = config["parameters"].get("intra_op_thread_count", {}).get("string_value", "0")
        options.intra_op_num_threads = int(os.environ.get("TRITON_STANDIN_THREADS", threads))
        # Idle threads sleep: whatever is tested shares these cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = config["parameters"].get("enable_mem_pattern", {}).get("string_value") != "0"
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        problems = contradictions(config, self._session.get_inputs(), self._session.get_outputs())
        if problems:
            raise pb_utils.TritonModelException(f"config.pbtxt of {args['model_name']}: {'; '.join(problems)}")
        self._inputs = [item["name"] for item in config["input"]]
        self._name = f"{args['model_name']} {args['model_version']}"

    def execute(self, requests):
        """Answer each request: those of one shape and with the same wanted outputs are run as one batch."""
        groups = defaultdict(list)
        arrays = []
        for place, request in enumerate(requests):
            arrays.append([pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs])
            widths = tuple(array.shape[1:] for array in arrays[-1])
            groups[widths, tuple(sorted(request.requested_output_names()))].append(place)
        responses = [None] * len(requests)
        for (_, outputs), places in groups.items():
            self._run([arrays[place] for place in places], list(outputs), places, responses)
        started = time.monotonic()
        while (left_s := started + delay_s() - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.01))
        return responses

    def _run(self, group, outputs, places, responses):
        rows = [arrays[0].shape[0] for arrays in group]
        feed = {
            name: np.concatenate(parts) for name, parts in zip(self._inputs, zip(*group, strict=False), strict=False)
        }
        shape = "x".join(map(str, feed[self._inputs[0]].shape))
        note_run(f"{self._name} {shape} {len(group)}")
        try:
            results = self._session.run(outputs, feed)
        except Exception as error:  # what ONNX Runtime raises has no public root
            for place in places:
                responses[place] = pb_utils.InferenceResponse(error=pb_utils.TritonError(f"onnx runtime: {error}"))
            return
        stops = np.cumsum(rows)
        for place, count, stop in zip(places, rows, stops, strict=False):
            tensors = [
                pb_utils.Tensor(name, np.ascontiguousarray(result[stop - count : stop]))
                for name, result in zip(outputs, results, strict=False)
            ]
            responses[place] = pb_utils.InferenceResponse(output_tensors=tensors)


def note_run(line):
    """Tell the log and the tests' file that an execution begins."""
    pb_utils.Logger.log_verbose(f"stand-in runs {line}")
    if "TRITON_STANDIN_RUNS_FILE" in os.environ:
        with open(os.environ["TRITON_STANDIN_RUNS_FILE"], "a") as stream:
            stream.write(line + "\n")


def delay_s():
    """How much longer an execution is to take, in seconds."""
    file = os.environ.get("TRITON_STANDIN_DELAY_FILE")
    if file and os.path.exists(file):
        # Empty for a moment while it is written anew.
        return float(Path(file).read_text() or 0) / 1000
    return float(os.environ.get("TRITON_STANDIN_DELAY_MS", "0")) / 1000


def contradictions(config, inputs, outputs):
    """What the config says of tensors that the graph does not. All inputs must be named, outputs may be left out."""
    batched = config["max_batch_size"] > 0
    wanted, given = {item["name"] for item in config["input"]}, {item.name for item in inputs}
    problems = []
    if wanted != given:
        problems.append(f"inputs are {sorted(wanted)}, the graph takes {sorted(given)}")
    if not config["output"]:
        problems.append("no output is named")
    tensors = {item.name: item for item in (*inputs, *outputs)}
    for item in (*config["input"], *config["output"]):
        tensor = tensors.get(item["name"])
        if tensor is None:
            problems.append(f"{item['name']} is not in the graph, which has {sorted(tensors)}")
            continue
        if ONNX_TYPES.get(item["data_type"]) != tensor.type:
            problems.append(f"{item['name']} is {item['data_type']}, the graph has {tensor.type}")
        dims = [-1] * batched + [int(size) for size in item["dims"]]
        # A dimension with a name, or with none, is free.
        real = [size if isinstance(size, int) else -1 for size in tensor.shape]
        if len(dims) != len(real) or any(has not in (-1, says) for says, has in zip(dims, real, strict=False)):
            problems.append(f"{item['name']} has dims {dims} with the batch, the graph has {tensor.shape}")
    return problems
