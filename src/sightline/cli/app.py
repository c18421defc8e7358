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
        "making:demo",
        "Train, test and report on real handwritten digits; nothing to download.",
        "sightline demo",
    ),
    (
        MAKE,
        "train",
        "making:train",
        "Train a classifier on labelled images, test it, and write a report.",
        "sightline train photos.zip --epochs 20 --out runs/photos",
    ),
    (
        MAKE,
        "combine",
        "combining:combine",
        "Make one classifier of several: the mean of their answers, or of their weights.",
        "sightline combine runs/a runs/b runs/c --out runs/all",
    ),
    (
        MAKE,
        "tune",
        "tuning:tune",
        "Search for the recipe that does best, then train and test the winner.",
        "sightline tune photos.zip --over lr=1e-3..1e-1 --over batch_size=32,64,128 --trials 20",
    ),
    (
        MAKE,
        "compress",
        "compressing:compress",
        "Make a smaller classifier of one: healed, and measured beside it in one run.",
        "sightline compress runs/photos --by channels:0.4,int8 --out runs/small",
    ),
    (
        EXAMINE,
        "check",
        "examining:check",
        "What is wrong with these images, before it costs you a week.",
        "sightline check photos.zip --out check.png",
    ),
    (
        EXAMINE,
        "evaluate",
        "examining:evaluate",
        "Test a classifier, on its own test images or on others.",
        "sightline evaluate runs/photos new-photos/",
    ),
    (
        EXAMINE,
        "report",
        "reporting:report",
        "One page with all the evidence that is saved in a run.",
        "sightline report runs/photos --collect --require accuracy=0.9",
    ),
    (
        EXAMINE,
        "attack",
        "attacking:attack",
        "How many answers stay right when someone changes the images to break them.",
        "sightline attack runs/photos --by pgd --eps 8/255 --out attacked.png",
    ),
    (
        EXAMINE,
        "compare",
        "comparing:compare",
        "Networks and classical baselines on the same images, ranked.",
        "sightline compare photos.zip --models lenet5,resnet20 --baselines svm-rbf,knn --features hog",
    ),
    (
        EXAMINE,
        "explain",
        "explaining:explain",
        "Why this answer: what speaks for it, what would change it, and whether to believe that.",
        "sightline explain runs/photos cat.jpg dog.jpg --by all --out why.png",
    ),
    (
        USE,
        "predict",
        "answering:predict",
        "Name what is in images: files, folders, globs or stdin.",
        "sightline predict runs/photos holiday/*.jpg --form csv --out answers.csv",
    ),
    (
        USE,
        "export",
        "exporting:export",
        "One file for someone else's program, refused if its answers differ.",
        "sightline export runs/photos --to onnx --out model.onnx",
    ),
    (
        USE,
        "serve",
        "serving:serve",
        "Answer requests over HTTP, remember the answers, and take corrections.",
        "sightline serve site --port 8000",
    ),
    (
        USE,
        "releases",
        "keeping:releases",
        "The releases of a site: publish one, promote it, go back.",
        "sightline releases site publish runs/photos",
    ),
    (
        USE,
        "keys",
        "keeping:keys",
        "Who may ask a site, and for what.",
        "sightline keys site make camera --scopes predict,feedback",
    ),
    (
        USE,
        "journal",
        "keeping:journal",
        "What a site has answered, and what it was told since.",
        "sightline journal site list --limit 20",
    ),
    (USE, "runs", "listing:runs", "The runs in a folder, newest first.", "sightline runs"),
    (
        USE,
        "list",
        "listing:members",
        "What can be chosen: models, augmentations, losses, ...",
        "sightline list models",
    ),
)

for group, verb, where, purpose, example in COMMANDS:
    app.command(f"sightline.cli.{where}", name=verb, help=f"{purpose}\n\nExample: {example}", group=group)
