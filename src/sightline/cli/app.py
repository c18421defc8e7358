"""The commands, in the order of a classifier's life; each is imported when it is called."""

from collections.abc import Mapping, Sequence

from cyclopts import App, Group

app = App(
    name="sightline",
    help="From a folder of images to a classifier you can trust, ship and keep.\n\n"
    "Start with: sightline demo. Then: sightline train YOUR_FOLDER",
    help_format="plaintext",
    help_epilogue="Every command accepts --help (train: --help-all), --json and --debug.",
    suppress_keyboard_interrupt=False,  # main() prints what was saved
)

MAKE = Group("Make", sort_key=1)
EXAMINE = Group("Examine", sort_key=2)
USE = Group("Use", sort_key=3)

COMMANDS = (
    (
        MAKE,
        "demo",
        "train:demo",
        "Train, test and report on real handwritten digits; downloads nothing.",
        "sightline demo",
    ),
    (
        MAKE,
        "train",
        "train:train",
        "Train a classifier on labelled images, test it, and write a report.",
        "sightline train photos.zip --epochs 20 --out runs/photos",
    ),
    (
        MAKE,
        "combine",
        "combine:combine",
        "Make one classifier from several: the mean of their predictions, or of their weights.",
        "sightline combine runs/a runs/b runs/c --out runs/all",
    ),
    (
        MAKE,
        "tune",
        "tune:tune",
        "Search for the best recipe, then train and test the winner.",
        "sightline tune photos.zip --search-space lr=1e-3..1e-1 --search-space batch_size=32,64,128 --trials 20",
    ),
    (
        MAKE,
        "compress",
        "compress:compress",
        "Make a smaller classifier, fine-tuned and compared with the original.",
        "sightline compress runs/photos --by channels:0.4,int8 --out runs/small",
    ),
    (
        MAKE,
        "learn",
        "learn:learn",
        "Teach a classifier new images and new classes without forgetting; rename, merge or remove classes.",
        "sightline learn runs/photos new-photos/ --out runs/photos-2",
    ),
    (
        MAKE,
        "adapt",
        "adapt:adapt",
        "Adapt a classifier to another camera, place or year, from images without labels.",
        "sightline adapt runs/photos new-camera/ --labelled a-few/ --out runs/photos-there",
    ),
    (
        MAKE,
        "pretrain",
        "pretrain:pretrain",
        "Pre-train a backbone on images without labels, to start training from.",
        "sightline pretrain microscopy/ --by simclr --budget 2h --out runs/backbone",
    ),
    (
        EXAMINE,
        "check",
        "check:check",
        "Find problems of a data set before training: duplicates, leaks, imbalance, wrong labels.",
        "sightline check photos.zip --out check.png",
    ),
    (
        EXAMINE,
        "nearest",
        "nearest:nearest",
        "Find the images of a collection that are most like others.",
        "sightline nearest photos.zip mine.jpg --out nearest.png",
    ),
    (
        EXAMINE,
        "evaluate",
        "evaluate:evaluate",
        "Test a classifier on its test images or on others: metrics, groups, uncertainty.",
        "sightline evaluate runs/photos new-photos/",
    ),
    (
        EXAMINE,
        "report",
        "report:report",
        "Write one page with all results of a run, and check requirements.",
        "sightline report runs/photos --collect --require accuracy=0.9",
    ),
    (
        EXAMINE,
        "attack",
        "attack:attack",
        "Measure accuracy under adversarial attacks.",
        "sightline attack runs/photos --by pgd --eps 8/255 --out attacked.png",
    ),
    (
        EXAMINE,
        "compare",
        "compare:compare",
        "Train networks and classical baselines on the same images, and rank them.",
        "sightline compare photos.zip --models probe,finetune,resnet20 --baselines svm-rbf@hog",
    ),
    (
        EXAMINE,
        "explain",
        "explain:explain",
        "Explain predictions: saliency maps, counterfactuals, and how far to trust them.",
        "sightline explain runs/photos cat.jpg dog.jpg --by all --out why.png",
    ),
    (
        USE,
        "predict",
        "predict:predict",
        "Classify images: files, folders, globs or stdin.",
        "sightline predict runs/photos holiday/*.jpg --format csv --out answers.csv",
    ),
    (
        USE,
        "features",
        "features:features",
        "Write what a network sees in every image, as an array: by shards, resumable.",
        "sightline features photos/ --out features",
    ),
    (
        USE,
        "export",
        "export:export",
        "Export to a file for another program; refuses if its predictions differ.",
        "sightline export runs/photos --to onnx --out model.onnx",
    ),
    (
        USE,
        "serve",
        "serve:serve",
        "Serve a classifier over HTTP, with a journal of predictions and corrections.",
        "sightline serve site --port 8000",
    ),
    (
        USE,
        "studio",
        "studio:studio",
        "Open the web interface: the same verbs, with a mouse.",
        "sightline studio site",
    ),
    (
        USE,
        "releases",
        "site:releases",
        "Manage the releases of a site: publish, promote, roll back.",
        "sightline releases site publish runs/photos",
    ),
    (
        USE,
        "keys",
        "site:keys",
        "Manage the API keys of a site.",
        "sightline keys site make camera --scopes predict,feedback",
    ),
    (
        USE,
        "journal",
        "journal:journal",
        "List, export and erase the predictions of a site and their corrections.",
        "sightline journal site list --limit 20",
    ),
    (
        USE,
        "drift",
        "drift:drift",
        "Report whether a service's images are still those its release was tested on.",
        "sightline drift site",
    ),
    (
        USE,
        "review",
        "review:review",
        "Queue the answers that deserve a person's minute, and record what people say of them.",
        "sightline review site next",
    ),
    (
        USE,
        "improve",
        "improve:improve",
        "Learn from what people said of a service's answers, and release the result if it earns that.",
        "sightline improve site --every 1d",
    ),
    (USE, "runs", "list_members:runs", "List the runs in a folder, newest first.", "sightline runs"),
    (
        USE,
        "list",
        "list_members:list_members",
        "List the choices: models, augmentations, losses, ...",
        "sightline list models",
    ),
)

for group, verb, where, purpose, example in COMMANDS:
    app.command(f"sightline.cli.{where}", name=verb, help=f"{purpose}\n\nExample: {example}", group=group)


OLD_FLAGS: Mapping[str, Mapping[str, str]] = {
    "check": {"suspects": "out-dir", "fit": "resize-mode"},
    "compress": {"allowance": "max-accuracy-drop"},
    "evaluate": {"against": "compare-with", "keep": "save", "outliers": "ood", "sets": "conformal-alpha"},
    "predict": {"form": "format", "sets": "alpha", "unknown-below": "threshold"},
    "report": {"beside": "compare-with"},
    "tune": {"over": "search-space", "refine": "zoom-rounds"},
}
"""Verb -> flags of earlier releases and their names today; those of recipe fields are in `RENAMED_FIELDS`."""


def hide_keys(words: Sequence[str]) -> list[str]:
    """The words with each address of images as it may be printed and saved: its query may be a key."""
    if not any("://" in word and "?" in word for word in words):
        return [*words]
    from ..sources import hide_query

    return [
        word if before == "--url" else hide_query(word) for before, word in zip(["", *words], words, strict=False)
    ]


def rename_old_flags(words: Sequence[str]) -> list[str]:
    """The words of a command line with the flags of earlier releases renamed.

    >>> rename_old_flags(["evaluate", "runs/photos", "--sets=0.1", "--keep"])
    ['evaluate', 'runs/photos', '--conformal-alpha=0.1', '--save']
    """
    verb = next((word for word in words if not word.startswith("-")), "")
    names = dict(OLD_FLAGS.get(verb, {}))
    if verb in ("train", "tune", "compare"):
        from ..training import RENAMED_FIELDS

        names |= {old.replace("_", "-"): new.replace("_", "-") for old, new in RENAMED_FIELDS.items()}
    current = []
    for word in words:
        flag, equals, value = word.partition("=")
        new = names.get(flag[2:].replace("_", "-")) if flag.startswith("--") else None
        current.append(word if new is None else f"--{new}{equals}{value}")
    return current
