from huggingface_hub import InferenceClient

url = "http://localhost:8000/hf/image-segmentation?expression=the+red+box&expression=a+blue+ring"
client = InferenceClient(url)
for segment in client.image_segmentation("photo.jpg"):
    print(segment.label, segment.score, segment.mask.size)
    segment.mask.save(f"{segment.label}.png")
