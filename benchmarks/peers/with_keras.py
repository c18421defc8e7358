"""Keras on TensorFlow: image_dataset_from_directory(...).cache(), augmentation mapped over the dataset, fit.

As Keras's guides have it for training on a CPU: decoded once into memory, layers of augmentation in the
dataset, not in the model. The cache is filled in a first epoch that is not measured. A step draws from
as many images as are measured, since filling the cache with all of them would only take longer.
"""

import keras
import tensorflow as tf
from keras import layers, ops
from task import BATCH, LR, MEAN, MOMENTUM, STD, WEIGHT_DECAY, Answer, Asked, Clock, main


def conv(x: object, filters: int, kernel: int, stride: int) -> object:
    """A convolution without bias, padded as torch pads."""
    if kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2)(x)
    return layers.Conv2D(filters, kernel, stride, use_bias=False, kernel_initializer="he_normal")(x)


def norm(x: object) -> object:
    """Batch norm with torch's constants."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)


def block(x: object, inputs: int, outputs: int, stride: int, option: str) -> object:
    """Two convolutions and a shortcut, padded with zeros (A) or a 1x1 convolution (B)."""
    y = layers.ReLU()(norm(conv(x, outputs, 3, stride)))
    y = norm(conv(y, outputs, 3, 1))
    if outputs != inputs and option == "A":
        side = (outputs - inputs) // 2
        x = ops.pad(x[:, ::stride, ::stride, :], [(0, 0), (0, 0), (0, 0), (side, side)])
    elif outputs != inputs:
        x = norm(conv(x, outputs, 1, stride))
    return layers.ReLU()(layers.Add()([x, y]))


def resnet(depth: int, widths: tuple[int, ...], option: str) -> keras.Model:
    """The ResNets of networks.py."""
    pixels = x = keras.Input((32, 32, 3))
    inputs = widths[0]
    x = layers.ReLU()(norm(conv(x, inputs, 3, 1)))
    for stage, outputs in enumerate(widths):
        for number in range(depth):
            x = block(x, inputs, outputs, 2 if stage and not number else 1, option)
            inputs = outputs
    return keras.Model(pixels, head(layers.GlobalAveragePooling2D()(x)))


def lenet5() -> keras.Model:
    """The LeNet-5 of networks.py."""
    pixels = keras.Input((28, 28, 1))
    x = layers.AveragePooling2D(2)(layers.Conv2D(6, 5, padding="same", activation="relu")(pixels))
    x = layers.Flatten()(layers.AveragePooling2D(2)(layers.Conv2D(16, 5, activation="relu")(x)))
    x = layers.Dense(84, activation="relu")(layers.Dense(120, activation="relu")(x))
    return keras.Model(pixels, head(x))


def head(x: object) -> object:
    """Logits, in float32 in any precision."""
    return layers.Dense(10, dtype="float32")(x)


NETWORKS = {
    "lenet5": lenet5,
    "resnet20": lambda: resnet(3, (16, 32, 64), "A"),
    "resnet18": lambda: resnet(2, (64, 128, 256, 512), "B"),
}


def images(asked: Asked, steps: int) -> tf.data.Dataset:
    """``steps`` batches, decoded once, augmented anew in each epoch."""
    case = asked.case
    content = keras.utils.image_dataset_from_directory(
        asked.folder / "train",
        label_mode="int",
        color_mode="grayscale" if case.channels == 1 else "rgb",
        batch_size=BATCH,
        image_size=(case.size, case.size),
        shuffle=True,
        seed=0,
        verbose=False,
    )
    share = case.shift / case.size
    chain = [layers.RandomFlip("horizontal")] if case.mirror else []
    chain += [layers.RandomTranslation(share, share, fill_mode="constant", interpolation="nearest")]
    chain += [layers.Rescaling(1 / 255 / STD, -MEAN / STD)]
    augment = keras.Sequential(chain)
    content = content.take(steps).cache().shuffle(1000)
    content = content.map(lambda x, y: (augment(x, training=True), y), num_parallel_calls=tf.data.AUTOTUNE)
    return content.prefetch(tf.data.AUTOTUNE)


class Watch(keras.callbacks.Callback):
    """Counts steps, of the second epoch only."""

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock, self.counting = clock, False

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """The first epoch fills the cache."""
        del logs
        self.counting = epoch == 1

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """One step is done."""
        del batch, logs
        if self.counting:
            self.clock.tick()


def run(asked: Asked) -> Answer:
    """Train until the clock stops."""
    if asked.precision == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model, clock = NETWORKS[asked.net](), Clock(asked)
    optimizer = keras.optimizers.SGD(LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images(asked, clock.last), epochs=2, shuffle=False, verbose=0, callbacks=[Watch(clock)])
    return Answer(clock.rate, sum(int(ops.size(w)) for w in model.trainable_weights))


if __name__ == "__main__":
    main("keras", run)
