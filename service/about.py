"""What the service must say about its own numbers, wherever they are shown."""

ABOUT = (
    "Nats measure how much a training example narrows the model's belief about a prediction: not whether it pushes "
    "the prediction up or down, and not whether its label is right, because labels do not enter.",
    "The sign of a hit's covariance is shown, as a sign: it says which way the two examples' measurements move "
    "together.",
    "Nats are exact for the sketched kernel of the index; the index card carries, as distortion, how far that is from "
    "the exact kernel.",
    "An index holds one checkpoint, the final one: what earlier checkpoints learned from an example is not seen.",
    "The noise variance decides how much one example can tell. Where it has not been tuned, the answer says so in a "
    "warning.",
    "Near-duplicates of a hit carry little further information and are left out by design; represents names them.",
)
