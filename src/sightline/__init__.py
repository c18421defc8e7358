"""sightline: from a folder of images to a classifier you can trust, ship and keep.

types errors choose files progress runtime metrics pictures : the ground, words every stage uses
sources : where labelled images lie, a folder, an archive, a table, a name
data : bytes become labelled images
preprocessing : images become what a network expects
augmentation : one image becomes many
layers : what networks are made of
models : from pixels to logits, and every change a network can survive
classifier : the waist, preprocessing + network + class names + calibration
attacks : the smallest change that breaks an answer
training : data and a recipe become a classifier
runs : a run or bundle opened with the images to examine it on
baselines : what the classical methods would have given
evaluation : how good is it, how sure are we, and for whom?
comparison : many trained, one table
tuning : many recipes, one winner
ensembles : several classifiers become one
formats : the same answers, in another file
explanation | robustness | compression : why? what breaks it? how small can it be?
evidence : all of it on one page
journal : what was answered, and what people said of it
serving : the classifier meets the world
cli : the same verbs, from a shell
"""

__version__ = "0.1.0"
