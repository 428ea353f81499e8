"""The one error that users see, and the catalogue of everything that can be said.

In: a code of CATALOGUE and the values its sentence names. Out: an AppError whose text is `[CODE] what is wrong. What to do.`
Library code raises it; the command line prints it and exits with 2; the page shows it. It knows nothing about either.
"""

CATALOGUE = {  # code: (what is wrong, what to do)
    "E_PROMPT_EMPTY": ("The prompt is empty.", "Describe the clip in a few words, like: a red ball rolls to the left over snow."),
    "E_PROMPT_LONG": ("The prompt has {given:,} characters; the limit is {limit}.", "Shorten it."),
    "E_PROMPT_TEXT": ("The prompt holds {given}, which cannot be read as text.", "Type it again as plain text."),
    "E_STEPS": ("The number of steps must be a whole number from 1 to {limit}, not {given}.", "Choose a whole number in that range."),
    "E_SEED": ("The seed must be a whole number from 0 to 2147483647, not {given}.", "Choose another seed or randomise it."),
    "E_FRAMES": ("The number of frames must be a whole number from 8 to 32, not {given}.", "Choose a number in that range; 16 is two seconds."),
    "E_SIZE": ("Width and height must be multiples of 32 from 128 to 512, not {given}.", "Choose for example 256x256 or 448x256."),
    "E_SAMPLER": ("There is no sampler called {given}.", "Choose one of: {known}."),
    "E_GUIDANCE": ("Guidance must be a number from 0 to 30, not {given}.", "Leave it out to use the model's own."),
    "E_TASK": ("There is no task called {given}.", "Choose one of: {known}."),
    "E_TASK_INPUT": ("The task {given} needs {needs}.", "Give it, or choose the task text."),
    "E_TASK_MODEL": ("The model {model} does not do the task {given}.", "Choose one of: {known}."),
    "E_MODEL": ("There is no model called {given}.", "Choose one of: {known}; or give a folder that holds a model."),
    "E_ROLE": ("A model is loaded as student or teacher, not as {given}.", "Choose one of the two."),
    "E_MODEL_FILE": ("The model folder {folder} lacks a usable {given}.", "Fetch the repository again, or train it as CONTRIBUTING.md shows."),
    "E_CHECKPOINT": (
        "The file {given} is not what its manifest says: it is damaged or was changed.",
        "Restore it, or delete it to start from the one before.",
    ),
    "E_CHECKPOINT_KEYS": ("The weights in {given} do not fit the network: {detail}.", "Use weights made for this network."),
    "E_NO_CHECKPOINT": ("There is nothing to resume in {given}.", "Start without --resume, or name the folder of an earlier run."),
    "E_DEVICE": ("The device {given} cannot be used here.", "Choose one of: {known}."),
    "E_DTYPE": ("There is no number format called {given}.", "Choose one of: {known}."),
    "E_NONFINITE": ("The model produced values that are not numbers at step {given}.", "Try another seed; if it stays, the weights are damaged."),
    "E_OUTPUT": ("The file {given} cannot be written.", "Choose a folder that exists and can be written to."),
    "E_INPUT": ("The file {given} cannot be read.", "Check the name and the right to read it."),
    "E_NO_SETTINGS": ("The clip {given} carries no settings of this project.", "Choose an mp4 that was made here."),
    "E_BUSY": ("The device is busy with another clip.", "Wait a moment and try again."),
    "E_ARGUMENTS": ("The command line is not understood: {detail}.", "See --help."),
    "E_PORT": ("Port {given} is taken.", "Choose another with --port."),
    "E_NETWORK": ("Listening beyond this machine needs a password.", "Add --auth NAME:PASSWORD."),
    "E_NUMBER": ("{name} must be {range}, not {given}.", "Choose a value in that range."),
    "E_STAGE": ("There is no stage called {given}.", "Choose one of: {known}."),
    "E_DATA": ("There is no training data called {given}.", "Choose toybox."),
    "E_DONE": ("The run {given} has no iterations left.", "Ask for more with --iterations, or start anew without --resume."),
    "E_NAN": ("Training stopped: the loss was not a number {given} times in a row.", "Lower the learning rate; the last good checkpoint is kept."),
    "E_INTERNAL": ("Something failed that should not.", "Try again; the log has the details."),
}


class AppError(ValueError):
    """One thing that went wrong, said in one line: `[code] message hint`.

    `values` fill the placeholders of the catalogue's sentence; what users gave is cut to 60 characters and shown on one line.
    Raises KeyError for a code that the catalogue does not know.
    """

    def __init__(self, code, **values):
        message, hint = CATALOGUE[code]
        shown = {key: value if isinstance(value, (int, float)) else one_line(value) for key, value in values.items()}
        self.code, self.message, self.hint = code, message.format(**shown), hint.format(**shown)
        super().__init__(f"[{self.code}] {self.message} {self.hint}")


def one_line(value, limit=60):
    """`value` as at most `limit` printable characters on one line."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return text if len(text) <= limit else text[: limit - 3] + "..."
