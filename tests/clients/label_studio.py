import base64

import requests
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image

CONFIG = """
<View>
  <Image name="photo" value="$image"/>
  <BrushLabels name="mask" toName="photo"><Label value="Box"/><Label value="Ring"/></BrushLabels>
  <TextArea name="prompt" toName="photo"/>
</View>
"""
with open("photo.jpg", "rb") as file:
    image = "data:image/jpeg;base64," + base64.b64encode(file.read()).decode()
typed = {"from_name": "prompt", "to_name": "photo", "type": "textarea"}
typed["value"] = {"text": ["the red box", "a blue ring"]}

request = {
    "tasks": [{"id": 1, "data": {"image": image}}],
    "label_config": CONFIG,
    "params": {"context": {"result": [typed]}},
}
answer = requests.post("http://localhost:8000/label-studio/predict", json=request, timeout=60)
answer.raise_for_status()
prediction = answer.json()["results"][0]
assert not LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True)
for region in prediction["result"]:
    size = region["original_height"], region["original_width"], 4
    mask = decode_rle(region["value"]["rle"]).reshape(size)[:, :, 3]
    print(region["meta"]["text"], region["value"]["brushlabels"], region["score"])
    Image.fromarray(mask).save(f"{region['value']['brushlabels'][0]}.png")
