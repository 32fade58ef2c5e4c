/** Takes a picture with the camera, in a dialog, or with the phone's camera app if pages may not use the camera. */

export function setUpCamera(onPicture) {
  const dialog = document.querySelector("#camera");
  const video = dialog.querySelector("video");
  const problem = dialog.querySelector(".problem");
  const shoot = dialog.querySelector(".shoot");
  const phone = document.querySelector("#phone-camera");
  let stream = null;
  let taken = 0;

  document.querySelector("#open-camera").addEventListener("click", async () => {
    if (!navigator.mediaDevices) return phone.click(); // neither HTTPS nor localhost
    problem.hidden = true;
    shoot.disabled = true;
    dialog.showModal();
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      if (!dialog.open) return stop(); // the user closed it while the browser asked for permission
      video.srcObject = stream;
      await video.play();
      shoot.disabled = false;
      shoot.focus();
    } catch (error) {
      problem.textContent = `The camera cannot be used: ${error.message}`;
      problem.hidden = false;
    }
  });

  shoot.addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => {
      taken += 1;
      onPicture([new File([blob], `camera-${taken}.jpg`, { type: "image/jpeg" })]);
      dialog.close();
    }, "image/jpeg", 0.92);
  });

  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", stop);
  phone.addEventListener("change", () => {
    onPicture([...phone.files]);
    phone.value = "";
  });

  function stop() {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    video.srcObject = null;
  }
}
