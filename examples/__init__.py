"""Networks of one's own, each a short script: written in torch, exported once, run without torch.

python -m examples.segment    a U-Net that labels the points of a room, trained here
python -m examples.detect     a LiDAR sweep as a map seen from above
python -m examples.windows    attention in windows of voxels
"""
