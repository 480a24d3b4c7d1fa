"""The tasks that text models are adapted to, one file and one line each: objectives with heads, over records."""

from t5like.tasks.classification import TextClassification as TextClassification
