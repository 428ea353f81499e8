"""The one error that users see, and the catalogue of everything that can be said.

In: a code of CATALOGUE and the values its sentence names. Out: an AppError whose text is `[CODE] what is wrong. What to do.`
Library code raises it; the command line prints it and exits with 2; the page shows it. It knows nothing about either.
"""

from functools import partial
from pathlib import PurePath

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
    "E_W_RANGE": ("Guidance must be {low} to {high}, not {given}.", "Leave it out."),
    "E_GAMMA": ("Gamma must be a number from 0 to 1, not {given}.", "Leave it out for the model's own; 0 is deterministic."),
    "E_CELLS": ("A comparison has 1 to {limit} different cells, not {given}.", "Choose fewer numbers of steps or samplers, but one at least."),
    "E_TASK": ("There is no task called {given}.", "Choose one of: {known}."),
    "E_TASK_INPUT": ("The task {given} needs {needs}.", "Give it, or make a clip of the prompt alone, by the task text."),
    "E_TASK_MODEL": ("The model {model} does not do the task {given}.", "Choose one of: {known}."),
    "E_ALSO": ("A clip cannot follow {given} too.", "Choose one of: {known}."),
    "E_STRENGTH": ("Strength must be a number from 0 to 2, not {given}.", "Leave it out for 1, as the model was trained."),
    "E_MODEL": ("There is no model called {given}.", "Choose one of: {known}; or give a folder that holds a model."),
    "E_ROLE": ("A model is loaded as student or teacher, not as {given}.", "Choose one of the two."),
    "E_MODEL_FILE": ("The model folder {folder} lacks a usable {given}.", "Fetch the repository again, or train it as CONTRIBUTING.md shows."),
    "E_CHECKPOINT": (
        "The file {given} is not what its manifest says: it is damaged or was changed.",
        "Restore it, or delete it to start from the one before.",
    ),
    "E_NOT_FINITE": (
        "The weights of {given} are not all numbers, or too large to be written: they were not.",
        "Go on from an earlier checkpoint, with a lower rate.",
    ),
    "E_CHECKPOINT_KEYS": ("The weights in {given} do not fit the network: {detail}.", "Use weights made for this network."),
    "E_CONVERT": (
        "A model is loaded from a folder, not from a checkpoint file like {given}.",
        "Convert it first: python -m videolcm convert FILE --out DIR.",
    ),
    "E_MODEL_PARTS": (
        "The model folder {folder} lacks a usable {given}.",
        "Put it there, in diffusers' layout as safetensors; official ones want Stable Diffusion 2.1's.",
    ),
    "E_SCHEDULER": (
        "A model's scheduler is of a kind that is not sampled here: {detail}.",
        "Use one with 1000 timesteps that predicts epsilon or v.",
    ),
    "E_MEMORY": ("The device has not enough memory for {frames} frames of {size}{shortage}.", "Choose fewer frames or a smaller size{more}."),
    "E_MODEL_MEMORY": ("The model {given} does not fit the memory of {device}.", "Free some, choose a smaller model, or use --device cpu."),
    "E_TRAIN_MEMORY": ("The device has not enough memory for a batch of {given}.", "Resume with a smaller --batch: the last checkpoint is kept."),
    "E_CELL_ROLE": ("There is nothing called {given} to compare.", "Choose of: {known}."),
    "E_NO_STUDENT": ("The fine-tune {given} has no student yet.", "Wait for its first previews, about a minute, then try again."),
    "E_ROLE_MODEL": ("The model {model} is a {role}.", "Load it with --role {role}; if the name misled convert, convert again with --role."),
    "E_NOT_CHECKPOINT": ("The file {given} is not a checkpoint that can be read safely.", "Give an official .pth of VideoLCM or TF-T2V."),
    "E_NOT_VGEN": ("The tensors are not a VideoLCM or TF-T2V network: {detail} is missing.", "Give an official .pth of VideoLCM or TF-T2V."),
    "E_VGEN_CONFIG": ("No network has this config: {detail}.", "Give a JSON object with the values that the checkpoint was made with."),
    "E_VGEN_TENSORS": ("Of {count} tensors that do not fit the network, {first} {problem}{more}.", "Check config and checkpoint."),
    "E_NOT_HERE": ("The model {given} is not here: {size} to download.", "Fetch it: tab Models, or python -m videolcm fetch {name}."),
    "E_OFFLINE": ("The model {given} is not here, and this machine is offline.", "Put its files into {folder}, as README.md shows."),
    "E_BASE": (
        "The model {given} wants Stable Diffusion 1.5 as base.",
        "Write {given}:OWNER/NAME@REVISION, or put one into its folder base.",
    ),
    "E_BY_HAND": ("The model {given} is made of {file}.", "Convert it: python -m videolcm convert FILE --out models/{given}."),
    "E_REVISION": ("There is no model called {given} to fetch.", "Give a name that `videolcm models` lists, or OWNER/NAME@REVISION, all 40 digits."),
    "E_DECLINED": ("Nothing of {given} was downloaded.", "Say y when asked, or add --yes."),
    "E_FETCH": ("The download of {given} failed: {detail}.", "Try again; what is there already is kept."),
    "E_FRAMES_MODEL": ("This model makes at most {limit} frames, not {given}.", "Choose fewer."),
    "E_CONDITION": ("The network takes no condition called {given}.", "Choose one of: {known}."),
    "E_OUT_TAKEN": ("The folder {given} already holds a model.", "Name another with --out."),
    "E_RESUME": ("The checkpoint is of another kind of student.", "Resume with the --lora, --guidance-range and --two-time that it began with."),
    "E_INPUTS": ("The network of {given} has no place for w or s as an input.", "Leave out --guidance-range and --two-time."),
    "E_SHOWN": ("It is not known how much pictures show of each channel of the latents of {given}.", "Leave out --as-shown."),
    "E_SEAMS": ("The codec of {given} does not decode latent frames apart from each other.", "Leave out --seam-weight."),
    "E_PROCESSES": ("WORLD_SIZE promises other processes, which cannot be found.", "Start them with torchrun, or unset WORLD_SIZE."),
    "E_NO_CHECKPOINT": ("There is nothing to resume in {given}.", "Start without --resume, or name the folder of an earlier run."),
    "E_DEVICE": ("The device {given} cannot be used here.", "Choose one of: {known}."),
    "E_DTYPE": ("There is no number format called {given}.", "Choose one of: {known}."),
    "E_NONFINITE": ("The model produced values that are not numbers at step {given}.", "Try another seed; if it stays, the weights are damaged."),
    "E_OUTPUT": ("The file {given} cannot be written.", "Choose a folder that exists and can be written to."),
    "E_DISK": ("The disk is full or refuses the file {given}.", "Make room, then resume: the checkpoint before is kept."),
    "E_INPUT": ("The file {given} cannot be read.", "Check the name and the right to read it."),
    "E_PROMPTS": (
        "The file {given} holds no prompts that are wanted here.",
        "Write one a line; evaluate wants them as assets/prompts.jsonl has them.",
    ),
    "E_MEASURED": ("The file {given} holds no figures, or those of other networks or settings.", "Name another file for --keep, or delete this one."),
    "E_LINE": ("The line is not understood: {detail}.", "Write a prompt, or a JSON object with prompt and other fields of a request."),
    "E_LINES": ("Of {lines} lines, {count} gave no clip.", "See above which; correct them and run the same again: what is made is kept."),
    "E_NO_SETTINGS": ("The file {given} carries no settings of this project.", "Choose an mp4, GIF or PNG that was made here."),
    "E_KEPT": ("This clip is not there any more.", "Choose another; the oldest are removed when room runs out."),
    "E_FOLDER": ("The folder for {given} cannot be written to.", "Choose another with {variable}."),
    "E_VIDEO_EMPTY": ("The file is empty.", "Upload it again."),
    "E_VIDEO_LARGE": ("The file has more than {limit} MB.", "Cut it shorter or save it smaller; a few seconds are enough."),
    "E_VIDEO_FORMAT": ("The file is neither a video nor a picture that is read here.", "Use MP4, MOV, WebM, MKV, AVI, GIF, PNG, JPEG or WebP."),
    "E_VIDEO_CODEC": ("Video of the kind {given} is not read here.", "Save it as an MP4 file with H.264."),
    "E_VIDEO_SIZE": ("The picture is {given}; the limit is {limit:,} pixels in all.", "Save it smaller; 1920x1080 is plenty."),
    "E_VIDEO_AUDIO": ("The file has sound but no picture.", "Use a file with a video track."),
    "E_VIDEO_BROKEN": ("The file cannot be decoded: it is damaged, cut short or unusual.", "Save it again, best as an MP4 file with H.264."),
    "E_VIDEO_SLOW": ("Reading the file takes more time or memory than allowed.", "Use a shorter or smaller one."),
    "E_VIDEO_START": ("The video ends before second {given}.", "Choose an earlier start."),
    "E_FIT": ("There is no fit called {given}.", "Choose one of: {known}."),
    "E_TEMPORARY": ("The temporary folder cannot be used.", "Free some disk space and try again."),
    "E_FFMPEG": ("There is no ffmpeg to read videos with.", "Install imageio-ffmpeg again."),
    "E_SETTINGS": ("The settings in this file do not fit the page: {detail}.", "Use python -m videolcm compare for it."),
    "E_BUSY": ("The device is busy with another clip.", "Wait a moment and try again."),
    "E_QUEUE": ("{given} clips are waiting already, as many as may.", "Try again in about {seconds} s."),
    "E_ROOM": ("The disk has {given} MB left, of which {limit} MB are kept free.", "Make room, then try again."),
    "E_CLOSING": ("This page is about to end.", "Start it again: python app.py."),
    "E_BODY": ("The request has more than {limit} MB.", "Send less; videos are uploaded as files."),
    "E_API": ("The API has nothing called {given}.", "Choose one of: {known}."),
    "E_REQUEST": ("The request is not one that the page's API knows.", "See its description, Use via API at the foot of the page."),
    "E_ARGUMENTS": ("The command line is not understood: {detail}.", "See --help."),
    "E_PORT": ("Port {given} is taken.", "Choose another with --port."),
    "E_LOCALHOST": ("The page cannot be reached from this machine.", "If there is a proxy, add localhost to NO_PROXY; else try again."),
    "E_NETWORK": ("Listening beyond this machine needs a password.", "Add --auth NAME:PASSWORD."),
    "E_MCP": ("The page cannot answer MCP here.", 'Install gradio with it, pip install "gradio[mcp]", or leave out --mcp.'),
    "E_CLIP": ("A clip must be colour pictures of one size, at least 16x16, not {given}.", "Give another video."),
    "E_EXTRACTOR": ("There is no extractor called {given}.", "Choose one of: {known}."),
    "E_WEIGHTS": ("The weights of {given} are not here: {file} of {source}.", "Put them into {folder}, or choose another extractor."),
    "E_PACKAGE": ("The package {given} cannot be used here.", "Install requirements.txt into an environment of its own, without mediapipe."),
    "E_BOX": ("A box is four fractions x0, y0, x1, y1 from 0 to 1, left before right and top before bottom, not {given}.", "Draw another."),
    "E_MASK_SHAPE": (
        "The mask is {given}, which does not fit the video, {needs}.",
        "Give one picture, or as many as the video has, of its proportions.",
    ),
    "E_MASK_EMPTY": ("The mask marks nothing.", "Mark what shall be replaced."),
    "E_MASK_FULL": ("The mask marks everything.", "Leave some of the video, or use the task text."),
    "E_NUMBER": ("{name} must be {range}, not {given}.", "Choose a value in that range."),
    "E_STAGE": ("There is no stage called {given}.", "Choose one of: {known}."),
    "E_DATA": ("There is no training data called {given}.", "Choose toybox, or a folder of videos, pictures, .tar shards or cached latents."),
    "E_LATENTS": ("The latents that are cached in {given} are another model's.", "Give clips of your own, or a folder of this model's latents."),
    "E_CLIPS": ("None of the {count} files in {given} can be used as a clip.", "Give MP4, MOV, WebM, MKV, AVI, GIF, PNG, JPEG or WebP files."),
    "E_CLIPS_CHANGED": ("Clips that the run began with are gone or have other captions.", "Put them back, or start anew without --resume."),
    "E_SHARD": ("The shard {given} cannot be read to its end as a tar file.", "Make it again, without compression."),
    "E_CAPTIONS": ("There are {count} captions for {given} clips.", "Give one a line, in the order of the clips."),
    "E_DONE": ("The run {given} has no iterations left.", "Ask for more with --iterations, or start anew without --resume."),
    "E_NAN": ("Training stopped: the loss was not a number {given} times in a row.", "Lower the learning rate; the last good checkpoint is kept."),
    "E_CONDITIONS": ("A student learns one or several of {known}, not {given}.", "Give them with commas, like: text,depth."),
    "E_JOB": ("There is no fine-tune called {given}.", "Choose one of the list."),
    "E_JOB_STATE": ("A fine-tune that is {state} cannot be told to {given}.", "Look at the list: it may have ended meanwhile."),
    "E_JOB_LOST": ("The process ended without a word.", "Resume it: it goes on from its last checkpoint."),
    "E_JOB_PART": ("A part of the fine-tune failed: {detail}.", "Resume it: what was learned before is kept."),
    "E_JOB_FOLDER": ("The folder {given} belongs to a fine-tune that is running.", "Wait for its end, or name another with --out."),
    "E_OPTIMISER": ("There is no optimiser called {given}.", "Choose of: {known}."),
    "E_PRESET": ("There is no preset called {given}.", "Choose one of: {known}."),
    "E_DISTIL_OFF": ("Distilling is off here: {detail}.", "Run it on a machine of your own: python app.py."),
    "E_PASSWORD": ("This is not the password for distilling.", "Ask whoever runs this page."),
    "E_INTERNAL": ("Something failed that should not.", "Try again; the log has the details."),
}


LIMITS = {"known": 110}  # characters of a value that are shown, 60 of others
MOST = 199  # characters of the whole
LEAST = 20  # characters of a value that are shown, whatever the rest takes; of the longest fewer if need be


class AppError(ValueError):
    """One thing that went wrong, said in one line: `[code] message hint`.

    `values` fill the placeholders of the catalogue's sentence; what users gave is cut to LIMITS, then until the whole has MOST characters, and shown
    on one line, of a path its name.
    Raises KeyError for a code that the catalogue does not know.
    """

    def __init__(self, code, **values):
        shown = {
            key: value if isinstance(value, (int, float)) and abs(value) < 1e15 else one_line(value, LIMITS.get(key, 60))
            for key, value in values.items()
        }
        while (over := len(sentence(code, shown)) - MOST) > 0 and (key := longest(shown)):
            shown[key] = one_line(shown[key], max(len(shown[key]) - over, LEAST if len(shown[key]) > LEAST else 3))
        self.code, self.values = code, shown
        self.message, self.hint = (part.format(**shown) for part in CATALOGUE[code])
        super().__init__(sentence(code, shown))

    def __reduce__(self):
        """How a copy is made in another process: from code and values, not from the text."""
        return partial(AppError, self.code, **self.values), ()


def sentence(code, shown):
    return " ".join((f"[{code}]", *CATALOGUE[code])).format(**shown)


def longest(shown):
    """The text to be cut next, None if each is as short as can be: what was given goes before the list of what is known."""
    texts = [key for key, value in shown.items() if isinstance(value, str) and len(value) > 3]
    return max(texts, key=lambda key: (key != "known" and len(shown[key]) > LEAST, len(shown[key])), default=None)


def one_line(value, limit=60):
    """`value` as at most `limit` printable characters on one line; of a path the name alone, for folders are nobody's business."""
    try:
        told = value.name if isinstance(value, PurePath) else str(value)
    except ValueError:  # Python prints no number of more than 4300 digits
        told = "a very long number"
    text = "".join(c if c.isprintable() else " " for c in told)
    return text if len(text) <= limit else text[: limit - 3] + "..."
