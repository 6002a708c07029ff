//! What `tap-ctl stats` says of a disk; blktap, `tapdisk_vbd_stats`.

use serde::Deserialize;

/// The images that a tapdisk has open, and what became of sending what is written.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Stats {
    #[serde(default)]
    images: Vec<Image>,
    /// 1: sending has failed, and what is written is written to the image only.
    #[serde(default)]
    nbd_mirror_failed: i64,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Image {
    name: String,
}

impl Stats {
    pub(super) fn parse(text: &str) -> Option<Stats> {
        serde_json::from_str(text).ok()
    }

    /// Whether it sends what is written to this second place, or says itself that it has failed to.
    pub fn sends_to(&self, secondary: &str) -> bool {
        self.nbd_mirror_failed != 0 || self.secondary().as_deref() == Some(secondary)
    }

    /// The second place: an image that is no file.
    pub fn secondary(&self) -> Option<String> {
        self.images.iter().find(|image| !image.name.starts_with('/')).map(|image| format!("nbd:{}", image.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_place_is_an_image_that_is_no_file() {
        let text = r#"{ "name": "vhd:/sr/a.vhd", "secs": [ 8, 16 ], "images": [ { "name": "/sr/a.vhd", "hits": [ 0, 8 ],
            "fail": [ 0, 0 ], "driver": { "type": 4, "name": "vhd", "status": null } }, { "name": "mirror_vbd/7/xvda",
            "driver": { "type": 13 } } ], "tap": { "minor": 0 }, "nbd_mirror_failed": 0, "reqs_outstanding": 0 }"#;
        let stats = Stats::parse(text).unwrap();
        assert_eq!(stats.secondary().as_deref(), Some("nbd:mirror_vbd/7/xvda"));
        assert!(stats.sends_to("nbd:mirror_vbd/7/xvda") && !stats.sends_to("nbd:other"));
        let stats = Stats::parse(&text.replace("mirror_vbd/7/xvda", "/sr/b.vhd")).unwrap();
        assert!(stats.secondary().is_none() && !stats.sends_to("nbd:mirror_vbd/7/xvda"));
        let stats = Stats::parse(r#"{"images": [], "nbd_mirror_failed": 1}"#).unwrap();
        assert!(stats.sends_to("nbd:x") && stats.secondary().is_none());
        assert_eq!(Stats::parse("no statistics"), None);
    }
}
