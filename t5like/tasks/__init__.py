"""The tasks that text models are adapted to, one file and one line each: objectives with heads, over records."""

from t5like.tasks.classification import TextClassification as TextClassification
from t5like.tasks.span_qa import SpanQA as SpanQA
from t5like.tasks.tagging import TokenTagging as TokenTagging
from t5like.tasks.text_to_text import TextToText as TextToText
