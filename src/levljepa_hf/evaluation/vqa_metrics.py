"""Scores of answers to questions about images: VQAv2's rule, GQA's, POPE's."""

import re
from collections.abc import Sequence

from sklearn.metrics import accuracy_score, precision_recall_fscore_support

_PUNCTUATION = r';/[]"{}()=+\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_NUMBERS = {
    "none": "0",
    **{word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())},
}
_ARTICLES = {"a", "an", "the"}
# Where one apostrophe of these is missing, it is put back.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in _CONTRACTED for i, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # the official table has this one reversed


def normalize_answer(text: str) -> str:
    """An answer as the official VQAv2 evaluation compares it (github.com/GT-Vision-Lab/VQA, vqaEval.py).

    Punctuation goes or becomes a space, a full stop goes unless a digit follows, words are in lower case, "none" to
    "ten" become digits, articles go, and apostrophes come back ("dont" to "don't"). An answer of articles alone ("A")
    becomes empty, there as here.
    """
    text = without = _on_one_line(text)
    for mark in _PUNCTUATION:
        goes = mark + " " in text or " " + mark in text or _COMMA_IN_NUMBER.search(text)
        without = without.replace(mark, "" if goes else " ")
    without = _PERIOD.sub("", without, count=32)  # there, `re.UNICODE`, which is 32, stands where `count` belongs
    words = [_NUMBERS.get(word, word) for word in without.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQAv2's accuracy of one answer (arXiv 1612.00837), in 0..1.

    Each annotator is left out in turn: the prediction scores min(1, matches among the others / 3), and the mean over
    the annotators counts. Both sides are normalised by `normalize_answer` where the annotators disagree; where all
    say the same they are compared as they are, but for white space at the ends, as the official evaluation does for
    the sake of text to be read: "Yes." scores 0 among ten "yes". Evaluations of language models (LLaVA's) normalise
    the prediction before: `vqa_accuracy(normalize_answer(prediction), answers)`.

    Args:
        prediction: The model's answer.
        answers: The annotators', ten in VQAv2. Of fewer than four, all the others must match for a score of 1, in
            place of three; a single one must be matched.

    Raises:
        ValueError: if there are no answers.
    """
    if len(answers) == 0:
        raise ValueError("There is no answer to compare with: leave out questions that nobody answered.")
    prediction, *answers = map(_on_one_line, (prediction, *answers))
    if len(set(answers)) > 1:
        prediction, *answers = map(normalize_answer, (prediction, *answers))
    matches = [answer == prediction for answer in answers]
    if len(matches) == 1:
        return float(matches[0])
    enough = min(3, len(matches) - 1)
    return sum(min(1.0, (sum(matches) - own) / enough) for own in matches) / len(matches)


def gqa_accuracy(prediction: str, answer: str) -> float:
    """1 if the answers are equal but for case and white space at the ends, else 0 (GQA, arXiv 1902.09506)."""
    return float(prediction.strip().lower() == answer.strip().lower())


def pope_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Scores of answers to "Is there a ... in the image?" (POPE, arXiv 2305.10355); "yes" is the positive class.

    As in POPE's own evaluation an answer says no if its first sentence has the word "no" or "not", and yes otherwise,
    whatever it says. Case does not count.

    Args:
        predictions: N answers.
        references: N times "yes" or "no".

    Returns:
        `accuracy`, `precision`, `recall`, `f1` and `yes_rate`, the share of answers that say yes. What has no
        denominator, as the precision of a model that never says yes, is 0.

    Raises:
        ValueError: if there are no answers, not as many as references, or a reference is neither "yes" nor "no".
    """
    if len(predictions) != len(references) or len(predictions) == 0:
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} references: give one for each, and at least one."
        )
    truth = [reference.strip().lower() for reference in references]
    for i, one in enumerate(truth):
        if one not in ("yes", "no"):
            raise ValueError(f"references[{i}] is {references[i]!r}: POPE's answers are 'yes' or 'no'.")
    said = ["no" if _says_no(prediction) else "yes" for prediction in predictions]
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, said, labels=["yes"], average="macro", zero_division=0
    )
    return {
        "accuracy": float(accuracy_score(truth, said)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "yes_rate": said.count("yes") / len(said),
    }


def _says_no(answer: str) -> bool:
    words = answer.split(".")[0].replace(",", "").lower().split()
    return "no" in words or "not" in words


__all__ = ["gqa_accuracy", "normalize_answer", "pope_scores", "vqa_accuracy"]
