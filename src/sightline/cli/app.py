"""The commands, in the order of an image classifier's life; each is imported when it is called."""

from cyclopts import App, Group


def _version() -> str:
    from importlib.metadata import version

    return version("sightline")


app = App(
    name="sightline",
    help="From a folder of images to a classifier you can trust, ship and keep.\n\n"
    "Start with: sightline demo. Then: sightline train YOUR_FOLDER",
    help_format="plaintext",
    help_epilogue="Every command takes --help (train: --help-all), --json and --debug.",
    version=_version,
    suppress_keyboard_interrupt=False,  # main() says what was saved
)

MAKE = Group("Make", sort_key=1)
EXAMINE = Group("Examine", sort_key=2)
USE = Group("Use", sort_key=3)

COMMANDS = (
    (
        MAKE,
        "demo",
        "train:demo",
        "Train, test and report on real handwritten digits; nothing to download.",
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
        "Make one classifier of several: the mean of their answers, or of their weights.",
        "sightline combine runs/a runs/b runs/c --out runs/all",
    ),
    (
        MAKE,
        "tune",
        "tune:tune",
        "Search for the recipe that does best, then train and test the winner.",
        "sightline tune photos.zip --over lr=1e-3..1e-1 --over batch_size=32,64,128 --trials 20",
    ),
    (
        MAKE,
        "compress",
        "compress:compress",
        "Make a smaller classifier of one: healed, and measured beside it in one run.",
        "sightline compress runs/photos --by channels:0.4,int8 --out runs/small",
    ),
    (
        EXAMINE,
        "check",
        "evaluate:check",
        "What is wrong with these images, before it costs you a week.",
        "sightline check photos.zip --out check.png",
    ),
    (
        EXAMINE,
        "evaluate",
        "evaluate:evaluate",
        "Test a classifier, on its own test images or on others.",
        "sightline evaluate runs/photos new-photos/",
    ),
    (
        EXAMINE,
        "report",
        "report:report",
        "One page with all the evidence that is saved in a run.",
        "sightline report runs/photos --collect --require accuracy=0.9",
    ),
    (
        EXAMINE,
        "attack",
        "attack:attack",
        "How many answers stay right when someone changes the images to break them.",
        "sightline attack runs/photos --by pgd --eps 8/255 --out attacked.png",
    ),
    (
        EXAMINE,
        "compare",
        "compare:compare",
        "Networks and classical baselines on the same images, ranked.",
        "sightline compare photos.zip --models lenet5,resnet20 --baselines svm-rbf,knn --features hog",
    ),
    (
        EXAMINE,
        "explain",
        "explain:explain",
        "Why this answer: what speaks for it, what would change it, and whether to believe that.",
        "sightline explain runs/photos cat.jpg dog.jpg --by all --out why.png",
    ),
    (
        USE,
        "predict",
        "predict:predict",
        "Name what is in images: files, folders, globs or stdin.",
        "sightline predict runs/photos holiday/*.jpg --form csv --out answers.csv",
    ),
    (
        USE,
        "export",
        "export:export",
        "One file for someone else's program, refused if its answers differ.",
        "sightline export runs/photos --to onnx --out model.onnx",
    ),
    (
        USE,
        "serve",
        "serve:serve",
        "Answer requests over HTTP, remember the answers, and take corrections.",
        "sightline serve site --port 8000",
    ),
    (
        USE,
        "releases",
        "journal:releases",
        "The releases of a site: publish one, promote it, go back.",
        "sightline releases site publish runs/photos",
    ),
    (
        USE,
        "keys",
        "journal:keys",
        "Who may ask a site, and for what.",
        "sightline keys site make camera --scopes predict,feedback",
    ),
    (
        USE,
        "journal",
        "journal:journal",
        "What a site has answered, and what it was told since.",
        "sightline journal site list --limit 20",
    ),
    (USE, "runs", "list_members:runs", "The runs in a folder, newest first.", "sightline runs"),
    (
        USE,
        "list",
        "list_members:list_members",
        "What can be chosen: models, augmentations, losses, ...",
        "sightline list models",
    ),
)

for group, verb, where, purpose, example in COMMANDS:
    app.command(f"sightline.cli.{where}", name=verb, help=f"{purpose}\n\nExample: {example}", group=group)
