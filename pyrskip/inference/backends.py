"""Backend 'onnx': the exported graphs in onnxruntime, without torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pyrskip.errors import UserError
from pyrskip.inference.decider import Array, Arrays, Inputs


class OnnxBackend:
    """threads: of one operator; None: onnxruntime's choice."""

    def __init__(self, directory: Path, graphs: Sequence[str], threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("backend='onnx' needs onnxruntime: pip install 'pyrskip[onnx]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # sessions have a pool each: threads that spin between two runs would take the cores from each other
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.sessions = {}
        for graph in graphs:
            path = directory / "onnx" / f"{graph}.onnx"
            try:
                self.sessions[graph] = onnxruntime.InferenceSession(
                    path, options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # onnxruntime's own errors have no common base but this
                raise UserError(f"{path} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        self.inputs = {
            graph: {i.name for i in session.get_inputs()} for graph, session in self.sessions.items()
        }

    def run(self, graph: str, inputs: Inputs) -> Arrays:
        flat: dict[str, Array] = {}
        for name, value in inputs.items():
            of = value if isinstance(value, Mapping) else {"": value}
            flat |= {f"{name}_{key}" if key else name: array for key, array in of.items()}
        # what a graph has no use for is none of its inputs
        known = {name: value for name, value in flat.items() if name in self.inputs[graph]}
        outputs: Arrays = self.sessions[graph].run(None, known)
        return outputs
