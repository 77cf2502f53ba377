//! OBS Studio with a home of its own, so that nothing of a user's settings counts, on a virtual display.

use crate::common::ffmpeg::Clip;
use crate::common::process::{self, Peer};
use crate::common::{SOON, poll, wait_for};
use serde_json::json;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// The pace of the scenes.
pub const FRAMES_A_SECOND: usize = 15;

/// What OBS writes to its terminal, in its home.
const LOG: &str = "obs.log";

/// It publishes: the server has let it in.
const STARTED: &str = "==== Streaming Start ====";

/// It does not publish any more, and does not try to either.
const STOPPED: &str = "==== Streaming Stop ====";

/// What is on the canvas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// A video, over and over.
    Moving,
    /// A plain colour: every keyframe looks like every other.
    Still,
}

/// A running OBS. Dropping it ends it and its display.
pub struct Studio {
    obs: Peer,
    _display: Peer,
    home: TempDir,
}

impl Studio {
    /// Starts OBS, which begins to publish at once.
    #[track_caller]
    pub fn start(scene: Scene, server: &str, key: &str) -> Studio {
        let mut studio = Studio::launch(scene, server, key);
        studio.wait_to_say(&[STARTED, STOPPED]);
        assert!(studio.said().contains(STARTED), "OBS was not let in: {}", studio.said());
        studio
    }

    /// Starts OBS where it must be refused: it gives up without having published.
    #[track_caller]
    pub fn start_in_vain(server: &str, key: &str) -> Studio {
        let mut studio = Studio::launch(Scene::Still, server, key);
        studio.wait_to_say(&[STARTED, STOPPED]);
        assert!(!studio.said().contains(STARTED), "OBS was let in: {}", studio.said());
        studio
    }

    #[track_caller]
    fn launch(scene: Scene, server: &str, key: &str) -> Studio {
        let home = tempfile::Builder::new().prefix("lb-obs-").tempdir().unwrap();
        configure(home.path(), scene, server, key);
        let (display, number) = display(home.path());
        let log = std::fs::File::create(home.path().join(LOG)).unwrap();
        let mut obs = Command::new("obs");
        obs.args(["--startstreaming", "--minimize-to-tray", "--multi", "--disable-updater"]);
        obs.args(["--disable-shutdown-check", "--profile", "lb", "--collection", "lb", "--scene", "scene"]);
        obs.env("HOME", home.path()).env("XDG_CONFIG_HOME", home.path().join(".config"));
        obs.env("XDG_RUNTIME_DIR", home.path()).env("DISPLAY", format!(":{number}"));
        // No graphics card, and no sound server that might be the user's.
        obs.env("LIBGL_ALWAYS_SOFTWARE", "1").env("QT_QPA_PLATFORM", "xcb").env_remove("PULSE_SERVER");
        obs.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Studio { obs: Peer::new(process::spawn_tool(obs)), _display: display, home }
    }

    /// What it said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.home.path().join(LOG)).unwrap_or_default()
    }

    /// Waits until it has said one of these.
    #[track_caller]
    pub fn wait_to_say(&mut self, words: &[&str]) {
        let said = poll(3 * SOON, || {
            let running = self.obs.is_running();
            let log = self.said();
            let said = words.iter().any(|words| log.contains(words));
            assert!(said || running, "OBS ended: {log}");
            said.then_some(())
        });
        assert!(said.is_some(), "OBS says none of {words:?}: {}", self.said());
    }
}

/// A display whose number the server picks.
#[track_caller]
fn display(folder: &Path) -> (Peer, String) {
    let file = folder.join("display");
    let mut server = Command::new("Xvfb");
    server.args(["-displayfd", "1", "-screen", "0", "640x480x24", "-nolisten", "tcp"]);
    server.stdin(Stdio::null()).stdout(std::fs::File::create(&file).unwrap()).stderr(Stdio::null());
    let server = Peer::new(process::spawn_tool(server));
    let number = || std::fs::read_to_string(&file).unwrap_or_default();
    wait_for("a display", SOON, || number().ends_with('\n'));
    (server, number().trim().to_owned())
}

/// Writes a profile, a collection with one scene, and answers to what OBS would ask at its first start. How OBS connects again is
/// left as it comes.
fn configure(home: &Path, scene: Scene, server: &str, key: &str) {
    let folder = home.join(".config/obs-studio");
    let write = |name: &str, text: &str| {
        let file = folder.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    };
    write(
        "global.ini",
        "[General]\nFirstRun=true\nEnableAutoUpdates=false\n\
         [Basic]\nProfile=lb\nProfileDir=lb\nSceneCollection=lb\nSceneCollectionFile=lb\n\
         [BasicWindow]\nPreviewEnabled=false\n",
    );
    write(
        "basic/profiles/lb/basic.ini",
        &format!(
            "[General]\nName=lb\n\
             [Video]\nBaseCX=320\nBaseCY=180\nOutputCX=320\nOutputCY=180\nFPSType=1\nFPSInt={FRAMES_A_SECOND}\n\
             [Output]\nMode=Simple\n\
             [SimpleOutput]\nVBitrate=300\nABitrate=64\nStreamEncoder=x264\nUseAdvanced=true\nPreset=ultrafast\n\
             x264Settings=keyint={FRAMES_A_SECOND}\n"
        ),
    );
    let service = json!({ "type": "rtmp_custom", "settings": { "server": server, "key": key } });
    write("basic/profiles/lb/service.json", &service.to_string());
    write("basic/scenes/lb.json", &collection(scene).to_string());
}

fn collection(scene: Scene) -> serde_json::Value {
    let (kind, settings) = match scene {
        Scene::Moving => (
            "ffmpeg_source",
            json!({ "local_file": Clip::Alpha.file(), "is_local_file": true, "looping": true }),
        ),
        Scene::Still => ("color_source_v3", json!({ "color": 0xffb0_6020_u32, "width": 320, "height": 180 })),
    };
    let item = json!({ "name": "source", "id": 1, "visible": true, "align": 5,
                       "pos": { "x": 0.0, "y": 0.0 }, "scale": { "x": 1.0, "y": 1.0 } });
    json!({
        "name": "lb", "current_scene": "scene", "current_program_scene": "scene",
        "scene_order": [{ "name": "scene" }],
        "sources": [
            { "id": kind.trim_end_matches("_v3"), "versioned_id": kind, "name": "source", "settings": settings },
            { "id": "scene", "versioned_id": "scene", "name": "scene", "settings": { "items": [item] } },
        ],
    })
}
