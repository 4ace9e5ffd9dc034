"""What the words of the tables mean: every protocol, metric and method that a report names."""

from collections.abc import Iterator, Sequence

from evaluation.reporting.layout import StorePage
from evaluation.reporting.titles import metric_title, protocol_title
from evaluation.statistics.kinds import FINE_TUNED

PROTOCOLS = {
    "linear": "A logistic regression (ridge for a quantity, Cox for survival) on frozen features.",
    "linear_clinical": "The linear probe on frozen features and clinical columns together.",
    "knn": "Mean label of the nearest training subjects; nothing is trained.",
    "prototypes": "Probability by the distance to the mean of each class (SimpleShot).",
    "attentive": "Trained attention over patch or crop tokens, then a linear layer.",
    "svm": "A support vector machine with a Gaussian kernel.",
    "dense": "A linear probe on the tokens of each patch, scored by voxel.",
    "retrieval": "Training subjects ordered by their likeness to each scored one.",
    "constant": "The same score for everybody: what knowing nothing comes to.",
    "atlas": "Where the class lies in training subjects, whatever the image.",
    "intensity": "The class of a voxel from its brightness alone.",
    FINE_TUNED: "The network itself was trained on the labels of the task, from a backbone's "
    "weights or from scratch; nothing is fitted on top of it.",
}
METRICS = {
    "auroc": "How often a positive subject scores above a negative one; 0.5 is chance.",
    "average_precision": "Area under precision and recall; chance is the share of positives.",
    "balanced_accuracy": "Mean share of each class that is called rightly; chance is one in K.",
    "sensitivity_at_90_specificity": "Share of positives called at a threshold that was chosen, on "
    "other subjects, to call at most a tenth of the negatives.",
    "accuracy": "Share of subjects whose most probable class is theirs.",
    "macro_auroc": "Mean AUROC of each class against the rest, or of each label.",
    "macro_average_precision": "Mean AUPRC of the labels.",
    "brier": "Mean squared distance of the probabilities from what happened; lower is better.",
    "nll": "Mean surprise at what happened, in nats; lower is better.",
    "r2": "Share of the label's variance that is explained; 0 is the mean, below 0 is worse.",
    "mean_absolute_error": "In the label's own unit (levels of an ordinal one); lower is better.",
    "quadratic_kappa": "Agreement of ordered levels beyond chance; 0 is chance, 1 perfect.",
    "concordance": "Share of the pairs of known order that the score puts in that order (Harrell); "
    "0.5 is chance.",
    "time_dependent_auroc": "AUROC of an event until a time against none until then, weighted for "
    "censoring; the mean over the quartiles of event times.",
    "dice": "Twice the overlap of true and predicted mask over the sum of their sizes.",
    "mean_average_precision": "Mean over the scored subjects of the precision at each training "
    "subject of the same class.",
    "hit_at_1": "Whether the most alike training subject is of the same class.",
    "hit_at_5": "Whether one of the five most alike is.",
}
METHODS = {
    "logit DeLong": "Interval of an AUROC without drawing, symmetric in its log-odds.",
    "score interval of a perfect AUROC": "Interval where no subject is out of order, so that there "
    "is no spread to see (Newcombe's method 5).",
    "BCa bootstrap": "Subjects drawn again, percentiles corrected for bias and skewness (Efron).",
    "percentile bootstrap": "Subjects drawn again, the middle 95% of what comes out.",
    "logit jackknife": "Each subject left out once; symmetric in the log-odds.",
}
CEILING = (
    "Supervised ceiling",
    "The same network trained from scratch on all labels of the training subjects: what a backbone "
    "must come near while frozen, and surpass once fine-tuned, to be worth its pretraining.",
)
ALWAYS = {
    "Floor": "What a backbone must beat to be worth its cost: no image, a simple measure, or a "
    "network that was never trained.",
    "Sign-flip permutation": "p is how often swapping the two models' scores of random subjects "
    "makes a difference as large as the observed one.",
    "Holm": "Correction of the p values for how many comparisons the report makes.",
}


def glossary(pages: Sequence[StorePage]) -> list[tuple[str, str]]:
    """Each term that these pages use with what it means, in the order of the alphabet."""
    found = dict(_terms(pages)) | ALWAYS
    return sorted(found.items(), key=lambda term: term[0].lower())


def _terms(pages: Sequence[StorePage]) -> Iterator[tuple[str, str]]:
    for page in pages:
        for task in page.content.tasks:
            if task.results.ceilings:
                yield CEILING
            for row in task.results.rows:
                if row.protocol in PROTOCOLS:
                    yield _capital(protocol_title(row.protocol)), PROTOCOLS[row.protocol]
                for score in row.scores:
                    if score.metric in METRICS:
                        yield metric_title(score.metric), METRICS[score.metric]
                    if score.method in METHODS:
                        yield _capital(score.method), METHODS[score.method]


def _capital(text: str) -> str:
    """As it begins a line; ``k-NN`` stays as it is."""
    return text if text == "k-NN" else text[:1].upper() + text[1:]
