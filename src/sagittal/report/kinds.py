"""What a report says of each kind of question: which measures lead, how cases are ranked, what stands behind the numbers."""

from __future__ import annotations

from dataclasses import dataclass

from sagittal.evaluate.evidence import Evidence

_BOOTSTRAP = (
    "Everything else: bias-corrected and accelerated bootstrap (Efron, J Am Stat Assoc 82:171, 1987) that draws whole "
    "patients with replacement."
)
_WILSON = "Proportions, where every patient has one case: Wilson, J Am Stat Assoc 22:209, 1927."


@dataclass(frozen=True)
class Telling:
    """How evidence of one kind of question is told.

    Parameters
    ----------
    main : tuple of str
        The measures by which groups are compared, the most telling first.
    shown : tuple of str
        Those of a model card.
    class_title, class_word : str
        Heading and first column of the table of classes.
    class_measures : tuple of str
        Columns of that table.
    group_measures : tuple of str
        Columns of the tables of subgroups.
    baseline : str
        What the baseline is, as the end of a sentence.
    decided : str
        How answers came about, a sentence with the operating point as ``{point}``; empty where there is none.
    rank : str
        What cases are ranked by, in words.
    best, worst : str
        Headings of the groups of cases.
    picture : str
        How pictures of cases are to be read.
    references : tuple of str
    """

    main: tuple[str, ...]
    shown: tuple[str, ...]
    class_title: str
    class_word: str
    class_measures: tuple[str, ...]
    group_measures: tuple[str, ...]
    baseline: str
    decided: str
    rank: str
    best: str
    worst: str
    picture: str
    references: tuple[str, ...]


CLASSES = Telling(
    main=("auc", "balanced_accuracy"),
    shown=(
        "auc",
        "average_precision",
        "accuracy",
        "balanced_accuracy",
        "sensitivity",
        "specificity",
        "ppv",
        "npv",
        "mcc",
        "quadratic_kappa",
        "brier",
        "ece",
    ),
    class_title="Each class against the others",
    class_word="Class",
    class_measures=("prevalence", "auc", "average_precision", "sensitivity", "specificity", "ppv", "npv", "f1"),
    group_measures=("auc", "balanced_accuracy", "accuracy", "sensitivity", "specificity", "brier"),
    baseline="that knows only how frequent the classes are",
    decided="Decisions are those of the operating point {point}.",
    rank="log loss",
    best="the lowest log loss",
    worst="the highest log loss",
    picture="A map marks what the model used, not what is ill. It means something only where removing the marked places "
    "costs more than removing random ones (deletion below random) and showing them alone brings more back (insertion above "
    "random).",
    references=(
        "AUC and its interval: DeLong et al., Biometrics 44:837, 1988, by the fast algorithm of Sun and Xu, IEEE Signal "
        "Process Lett 21:1389, 2014; on the logit scale (Pepe, The Statistical Evaluation of Medical Tests, 2003); several "
        "cases of a patient as in Obuchowski, Biometrics 53:567, 1997; at an AUC of 0 or 1 method 5 of Newcombe, Stat Med "
        "25:559, 2006.",
        _WILSON,
        _BOOTSTRAP,
        "Multiclass MCC: Gorodkin, Comput Biol Chem 28:367, 2004. Weighted kappa: Cohen, Psychol Bull 70:213, 1968.",
        "Calibration error over ten bins of equal mass (fewer below 100 cases): Nixon et al., CVPR workshops 2019. Brier "
        "score: Mon Weather Rev 78:1, 1950; of two classes that of the positive one.",
        "Net benefit: Vickers and Elkin, Med Decis Making 26:565, 2006.",
        "Baseline: a model that knows only how frequent the classes are among these cases, answers the most frequent one "
        "and states the frequencies as its probabilities.",
    ),
)

STRUCTURES = Telling(
    main=("dice", "surface_dice"),
    shown=(
        "dice",
        "surface_dice",
        "hd95_median",
        "iou",
        "sensitivity",
        "precision",
        "cldice",
        "volume_error_percent",
        "expected_dice_error",
    ),
    class_title="Each structure",
    class_word="Structure",
    class_measures=(
        "dice",
        "dice_median",
        "surface_dice",
        "hd95_median",
        "asd_median",
        "cldice",
        "sensitivity",
        "precision",
        "volume_error_percent",
        "lesion_sensitivity",
        "lesion_precision",
        "lesion_dice",
        "missed",
        "invented",
    ),
    group_measures=("dice", "surface_dice", "hd95_median", "sensitivity", "precision", "volume_error_percent"),
    baseline="that marks every voxel as the structure; one that marks none has a Dice of 0 wherever there is something to "
    "find",
    decided="",
    rank="mean Dice",
    best="the highest mean Dice",
    worst="the lowest mean Dice",
    picture="Lines are outlines (thin structures are filled): white where truth and answer agree, blue where only the truth "
    "runs, yellow where only the answer does. In the second picture red marks where networks and mirrored views disagree.",
    references=(
        "Dice: Ecology 26:297, 1945. A case in which a structure is neither there nor found says nothing and is counted "
        "apart; one where only one of both holds has a Dice of 0 and an infinite distance.",
        "Surface distances and surface Dice: Nikolov et al., J Med Internet Res 23:e26151, 2021; surfaces between voxels, "
        "weighted by area. Distances are led by their median, which can hold infinite ones.",
        "Centre-line Dice (clDice), where the true structure is thin: Shit et al., CVPR 2021.",
        "Lesion by lesion, where a structure usually has several pieces: connected components matched one to one from an "
        "IoU of 0.1, after Kirillov et al., CVPR 2019.",
        "Agreement of volumes: Bland and Altman, Lancet 327:307, 1986.",
        "Over all structures: the mean of the structures' means, so that each counts the same.",
        "Shares of cases, such as missed ones: Wilson, J Am Stat Assoc 22:209, 1927, at the number of patients.",
        _BOOTSTRAP,
    ),
)

OBJECTS = Telling(
    main=("ap50", "sensitivity"),
    shown=(
        "ap50",
        "ap",
        "cpm",
        "sensitivity_at_1",
        "sensitivity",
        "precision",
        "f1",
        "false_positives_an_image",
        "auc",
        "ece",
    ),
    class_title="Each class of objects",
    class_word="Class",
    class_measures=(
        "ap50",
        "ap",
        "ap75",
        "ap10",
        "cpm",
        "sensitivity_at_1",
        "sensitivity",
        "precision",
        "f1",
        "false_positives_an_image",
        "auc",
    ),
    group_measures=("ap50", "cpm", "sensitivity", "precision", "false_positives_an_image", "auc"),
    baseline="that never finds anything",
    decided="Boxes that count are those of the operating point {point}.",
    rank="F1 of its boxes",
    best="the highest F1 of its boxes",
    worst="the lowest F1 of its boxes",
    picture="True boxes are dashed, found ones drawn through with class and score; only boxes that count are shown.",
    references=(
        "Average precision: Lin et al., ECCV 2014 (COCO), equal to pycocotools. Its interval is the basic bootstrap over "
        "patients (Davison and Hinkley, 1997), as AP of few objects is too high in every resample.",
        "FROC and its mean (CPM): Setio et al., Med Image Anal 42:1, 2017. An object of a picture is found by an IoU of "
        "0.5, one of a volume by a centre inside it.",
        "Scores are calibrated on validation cases: Kull et al., AISTATS 2017 (beta calibration).",
        "Whether an image holds an object at all: area under the ROC curve of its highest score.",
        _BOOTSTRAP,
    ),
)

_BY_KIND = {"structures": STRUCTURES, "objects": OBJECTS}


def telling_of(evidence: Evidence) -> Telling:
    """How this evidence is told; that of classes for tasks without a scheme."""
    scheme = evidence.settings.scheme
    return CLASSES if scheme is None else _BY_KIND.get(scheme.kind, CLASSES)
