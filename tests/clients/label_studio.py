import base64
import sys

import requests
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
from label_studio_sdk.label_interface.objects import PredictionValue
from PIL import Image

CONFIG = """
<View>
  <Image name="photo" value="$image"/>
  <BrushLabels name="mask" toName="photo"><Label value="Box"/><Label value="Ring"/></BrushLabels>
  <TextArea name="prompt" toName="photo"/>
</View>
"""
url, photo, out = sys.argv[1:]  # http://localhost:8000 photo.jpg .

with open(photo, "rb") as file:
    image = "data:image/jpeg;base64," + base64.b64encode(file.read()).decode()
typed = {
    "from_name": "prompt",
    "to_name": "photo",
    "type": "textarea",
    "value": {"text": ["the red box", "a blue ring"]},
}
request = {
    "tasks": [{"id": 1, "data": {"image": image}}],
    "label_config": CONFIG,
    "params": {"context": {"result": [typed]}},
}
answer = requests.post(f"{url}/label-studio/predict", json=request, timeout=60)
answer.raise_for_status()
prediction = PredictionValue(**answer.json()["results"][0]).model_dump()
assert LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True) == []
for region in prediction["result"]:
    size = region["original_height"], region["original_width"], 4
    mask = decode_rle(region["value"]["rle"]).reshape(size)[:, :, 3]
    print(region["value"]["brushlabels"], region["score"], (mask > 0).sum())
    Image.fromarray(mask).save(f"{out}/{region['meta']['text'][0]}.png")
