"""Mean average precision of detections: COCO, LVIS and PASCAL VOC, exact, with everything behind the number."""

from flashjax.evaluation.detection.evaluator import evaluate, load
from flashjax.evaluation.detection.protocols import PROTOCOLS, Protocol
from flashjax.evaluation.detection.result import Result
from flashjax.evaluation.detection.streaming import Evaluator

__all__ = ["PROTOCOLS", "Evaluator", "Protocol", "Result", "evaluate", "load"]
